"""`burnish repro`, and how a failing pass looks from a shell."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from command_line import Command

from burnish.compiler import registry
from burnish.compiler.context import Context
from burnish.compiler.errors import BurnishError
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.registry import register_pass
from burnish.compiler.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class _Faulty(Pass):
    """Fail with `message`."""

    name: ClassVar[str] = "faulty-in-a-test"
    message: ClassVar[str] = ""

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        if _Faulty.message:
            raise BurnishError(_Faulty.message)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(_Faulty, "message", "the first fault")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    register_pass(_Faulty)
    yield
    registry._passes.pop(_Faulty.name)


def fail(burnish: Command, text_file: Path, output: Path) -> Path:
    result = burnish("opt", text_file, "-p", "cse,faulty-in-a-test,dce", "-o", output)
    assert result.exit_code == 1
    assert "pass 'faulty-in-a-test' (number 2) failed: BurnishError: the first fault" in result.stderr
    assert "Traceback" not in result.stderr
    found = re.search(r"burnish repro (\S+)", result.stderr)
    assert found is not None
    return Path(found[1])


def test_a_failing_pass_leaves_no_output(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    bundle = fail(burnish, text_file, output)
    assert bundle.is_dir()
    assert not output.exists()


def test_it_still_fails(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    bundle = fail(burnish, text_file, tmp_path / "out.txt")
    result = burnish("repro", bundle)
    assert result.exit_code == 1
    assert "it still fails\n" in result.stdout
    assert "the first fault" in result.stderr
    # The replay fails in the bundle's own name, and leaves no second bundle behind.
    assert str(bundle) in result.stderr
    assert [each.name for each in tmp_path.glob("burnish-repro-*")] == [bundle.name]


def test_it_fails_otherwise(burnish: Command, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fail(burnish, text_file, tmp_path / "out.txt")
    monkeypatch.setattr(_Faulty, "message", "another fault")
    result = burnish("repro", bundle)
    assert result.exit_code == 1
    assert "otherwise than recorded (BurnishError: the first fault)" in result.stdout


def test_it_does_not_fail_any_more(
    burnish: Command, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fail(burnish, text_file, tmp_path / "out.txt")
    monkeypatch.setattr(_Faulty, "message", "")
    result = burnish("repro", bundle)
    assert result.exit_code == 0
    assert "does not fail any more" in result.stdout


def test_a_damaged_bundle(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    bundle = fail(burnish, text_file, tmp_path / "out.txt")
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "bundle.json").write_text("{")
    result = burnish("repro", damaged)
    assert result.exit_code == 2
    assert "is no reproducer bundle" in result.stderr
