"""Damaged files of every kind are refused by name; `benchmarks/fuzz.py` tries 100,000 of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import burnish
from benchmarks.fuzz import SMALL, damaged


@pytest.mark.parametrize(("backend", "suffix"), [("onnx", ".onnx"), ("torchscript", ".pt"), (None, ".burnish")])
def test_damaged_files_are_refused_by_name(backend: str | None, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    program = burnish.Program.parse(SMALL)
    if backend is None:
        program.save(path)
    else:
        burnish.compile(program, backend=backend).save(path)
    whole = path.read_bytes()
    refusals: list[str] = []
    randomness = random.Random(3)
    for _ in range(600):
        path.unlink()
        path.write_bytes(damaged(whole, randomness))
        try:
            burnish.load(path)
        except burnish.FileFormatError as error:
            refusals.append(str(error))
    assert len(refusals) > 300
    assert all(path.name in refusal for refusal in refusals)
    path.write_bytes(b"")
    with pytest.raises(burnish.FileFormatError, match=path.name):
        burnish.load(path)
