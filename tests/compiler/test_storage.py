"""Files: what is kept, what is refused, and that an interrupted save leaves the old file whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_models import NAMES, SMALL, captured, leaves

import burnish
from burnish.compiler import interpreter, storage
from burnish.compiler.atomic import atomic_path
from burnish.compiler.capture import capture
from burnish.compiler.errors import FileFormatError
from burnish.compiler.parser import parse_program
from burnish.compiler.printer import print_program
from burnish.compiler.provenance import provenance_of
from burnish.compiler.storage import load_program, save_program


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_program_comes_back_whole(name: str, tmp_path: Path) -> None:
    program = captured(name)
    save_program(program, tmp_path / "p.burnish")
    again = load_program(tmp_path / "p.burnish")
    assert print_program(again) == print_program(program)
    assert again.notes == program.notes
    assert list(again.samples) == list(program.samples)
    origins = {node.meta["name"]: provenance_of(node) for node in program.graphs["main"].nodes if "name" in node.meta}
    for node in again.graphs["main"].nodes:
        if "name" in node.meta:
            assert provenance_of(node) == origins[node.meta["name"]]
    expected, _ = interpreter.run(program, program.samples)
    actual, _ = interpreter.run(again, again.samples)
    torch.testing.assert_close(leaves(actual), leaves(expected), rtol=0, atol=0)


def test_aliases_and_strides_survive(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    text = "# burnish 1\n" + "".join(f"constant @{name}: f32[4, 4]\n" for name in "abc")
    text += "constant @d: f32[2, 4]\nconstant @e: f32[4, 2]\ngraph main(%x: f32[B, 4]) {\n"
    text += "".join(f"  %{name} = aten.linear(%x, @{name[1]})\n" for name in ("ya", "yb", "yc", "yd"))
    text += "  %ye = aten.mm(%x, @e)\n  return %ya, %yb, %yc, %yd, %ye\n}\n"
    values = {"a": base, "b": base, "c": base.t(), "d": base[1:3], "e": base[:, ::2]}
    program = parse_program(text, values)
    save_program(program, tmp_path / "p")
    again = load_program(tmp_path / "p").constants
    for name, value in values.items():
        assert torch.equal(again[name], value)
    assert again["a"] is again["b"]
    assert again["c"].stride() == (1, 4)
    assert again["d"].data_ptr() != again["a"].data_ptr()


@pytest.mark.parametrize("dtype", sorted(storage._STORABLE, key=str), ids=str)
def test_every_dtype_called_storable_is(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3).to(dtype)}, tmp_path / "x")
    assert load_file(tmp_path / "x")["x"].dtype == dtype


def test_a_program_that_needs_a_channels_last_input_loads(tmp_path: Path) -> None:
    class Flatten(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1).view(x.shape[0], -1)

    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    program = capture(Flatten(), (x,))
    save_program(program, tmp_path / "p")
    again = load_program(tmp_path / "p")
    assert print_program(again) == print_program(program)
    assert again.samples["x"].stride() == x.stride()


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    text = SMALL.replace("f32", "c128")
    program = parse_program(text.replace("aten.relu", "aten.neg"))
    with pytest.raises(FileFormatError, match=r"constant/w is a tensor of torch\.complex128"):
        save_program(program, tmp_path / "p")
    program = parse_program(SMALL)
    program.constants["w"] = program.constants["w"].to("meta")
    with pytest.raises(FileFormatError, match="constant/w has no data"):
        save_program(program, tmp_path / "p")
    program = parse_program(SMALL)
    program.samples["x"] = object()
    with pytest.raises(FileFormatError, match="sample 'x' is a object"):
        save_program(program, tmp_path / "p")
    assert not list(tmp_path.iterdir())


def rewritten(path: Path, change: str, value: object = None) -> Path:
    """Save the small program with one thing wrong."""
    save_program(parse_program(SMALL), path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if change.startswith(("constant/", "sample/")):
        if isinstance(value, torch.Tensor):
            tensors[change] = value
        else:
            del tensors[change]
    elif value is None:
        del metadata[change]
    else:
        metadata[change] = str(value)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("burnish", None, "not of a burnish Program"),
        ("burnish", "7", "format version '7'"),
        ("text", "# burnish 1\ngraph", "the program in it cannot be read"),
        ("text", None, "is damaged: KeyError: 'text'"),
        ("constant/w", None, "constant 'w' is missing"),
        ("constant/w", torch.zeros(4, 4), r"has type f32\[4, 4\]"),
        ("constant/w", torch.zeros(4, 3).half(), r"has type f16\[4, 3\]"),
        ("sample/x", torch.zeros(2, 5), "sample 'x' has another type"),
        ("sample/y", torch.zeros(2, 5), "sample 'y' is of no input"),
        ("samples", '{"x": [1]}', "neither a tensor nor a number"),
        ("provenance", "[]", "not a JSON object"),
        ("provenance", '{"main": {"origins": [], "nodes": {"%y": [[3], "x"]}}}', "IndexError"),
        ("orders", '{"constant/w": [0, 0]}', "is damaged"),
        ("notes", "{}", "notes are not a list"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(change: str, value: object, message: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "p.burnish", change, value)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_program(path)
    assert "p.burnish" in str(caught.value)


def test_truncated_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.burnish"
    save_program(parse_program(SMALL), path)
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FileFormatError, match=r"p\.burnish"):
            load_program(path)
    path.write_bytes(b"PK\x03\x04 a zip file, as torch.save writes" * 10)
    with pytest.raises(FileFormatError, match="not a burnish file"):
        load_program(path)
    with pytest.raises(FileFormatError, match="absent"):
        load_program(tmp_path / "absent")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FileFormatError, match="not of a burnish Program"):
        load_program(path)


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.burnish"
    save_program(parse_program(SMALL), path)
    before = path.read_bytes()

    def broken(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(storage, "save_file", broken)
    with pytest.raises(burnish.InputError, match="cannot be written: no space left"):
        save_program(parse_program(SMALL, seed=1), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["p.burnish"]


_WRITER = """
import sys, torch
from burnish.compiler.parser import parse_program
from burnish.compiler.storage import save_program
text = sys.stdin.read()
programs = [parse_program(text, {"w": torch.full((2000, 1000), float(i))}) for i in range(2)]
save_program(programs[0], sys.argv[1])
print("ready", flush=True)
while True:
    for program in programs:
        save_program(program, sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_save_leaves_a_whole_file(tmp_path: Path) -> None:
    text = SMALL.replace("4, 3]", "2000, 1000]").replace("B, 3]", "B, 1000]").replace("B, 4]", "B, 2000]")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    path = tmp_path / "p.burnish"
    leftovers = 0
    for delay in (0.003, 0.011, 0.017, 0.029):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        values = load_program(path).constants["w"].unique().tolist()
        assert values in ([0.0], [1.0])
        leftovers += len(list(tmp_path.glob(".p.burnish.*.tmp")))
    # The kills did fall into the middle of a write, or this test shows nothing.
    assert leftovers > 0


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    final = tmp_path / "d"
    for content in ("one", "two"):
        with atomic_path(final) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
        assert [each.name for each in final.iterdir()] == [content]

    def fail() -> None:
        with atomic_path(final) as temporary:
            temporary.mkdir()
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert [each.name for each in final.iterdir()] == ["two"]
    assert [each.name for each in tmp_path.iterdir()] == ["d"]


def test_metadata_are_json_and_text(tmp_path: Path) -> None:
    save_program(captured("net"), tmp_path / "p")
    raw = (tmp_path / "p").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["text"].startswith("# burnish 1\n")
