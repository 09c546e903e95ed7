"""Damaged text and files: only burnish's own errors may come out. benchmarks/fuzz.py does the same at length."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_models import SMALL, captured

from burnish.compiler.errors import FileFormatError, TextError
from burnish.compiler.parser import parse_program
from burnish.compiler.printer import print_program
from burnish.compiler.storage import load_program, save_program

_quick = settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
_PIECES = st.sampled_from(
    [
        "%x",
        "@w",
        "&t",
        "f32[",
        "B",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "=",
        "-",
        "//",
        "**",
        "inf",
        "\n",
        '"',
        "9" * 30,
    ]
)
_edits = st.lists(
    st.tuples(st.sampled_from(["delete", "insert", "swap", "cut"]), st.integers(0, 2000), st.integers(0, 40), _PIECES),
    min_size=1,
    max_size=4,
)

_flips = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=6)


def attempt(text: str) -> None:
    """Parse, and hold what is accepted to the round trip."""
    try:
        program = parse_program(text)
    except TextError as error:
        place = error.line, error.column
        assert min(place) >= 1, place
        return
    printed = print_program(program)
    assert print_program(parse_program(printed)) == printed


def edited(text: str, kind: str, place: int, length: int, piece: str) -> str:
    place = place % (len(text) + 1)
    if kind == "delete":
        return text[:place] + text[place + length % 5 + 1 :]
    if kind == "insert":
        return text[:place] + piece + text[place:]
    if kind == "cut":
        return text[:place] if length < 4 else text
    lines = text.split("\n")
    first, second = place % len(lines), length % len(lines)
    lines[first], lines[second] = lines[second], lines[first]
    return "\n".join(lines)


@_quick
@given(st.text(max_size=200))
def test_random_text(text: str) -> None:
    attempt(text)
    attempt("# burnish 1\n" + text)


@_quick
@given(st.lists(_PIECES, max_size=40))
def test_random_pieces(pieces: list[str]) -> None:
    attempt("# burnish 1\ngraph main(%x: f32[B]) {\n" + " ".join(pieces))


@_quick
@given(_edits, st.sampled_from(["small", "conditional", "data-dependent", "containers"]))
def test_edited_programs(edits: list[tuple[str, int, int, str]], name: str) -> None:
    text = SMALL if name == "small" else print_program(captured(name))
    for edit in edits:
        text = edited(text, *edit)
    attempt(text)


@_quick
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=6),
    st.none() | st.integers(0, 5000),
)
def test_damaged_files(flips: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(_whole())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.burnish"
        path.write_bytes(data if cut is None else data[:cut])
        try:
            program = load_program(path)
        except FileFormatError as error:
            message = str(error)
            assert "p.burnish" in message
            return
        # A flipped bit in a weight shows nowhere: the file is as good as another.
        print_program(program)


_saved: list[bytes] = []


def _whole() -> bytes:
    if not _saved:
        with tempfile.TemporaryDirectory() as folder:
            save_program(parse_program(SMALL), Path(folder) / "p")
            _saved.append((Path(folder) / "p").read_bytes())
    return _saved[0]
