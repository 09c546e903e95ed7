"""The golden harness must fail on a wrong golden, and write only while accepting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish import testing
from burnish.compiler.program import Program

CASE = """# about: a copy goes
# run: canonicalize
graph main(%x: f32[2, 3]) {
  %a = aten.neg(%x) : f32[2, 3]
  %b = aten.contiguous(%a) : f32[2, 3]
  return %b
}
=====
graph main(%x: f32[2, 3]) {
  %a = aten.neg(%x) : f32[2, 3]
  return %a
}
"""


@pytest.fixture
def accepting() -> Iterator[None]:
    testing.set_accepting(True)
    yield
    testing.set_accepting(False)


@pytest.fixture(autouse=True)
def comparing(request: pytest.FixtureRequest) -> Iterator[None]:
    testing.set_accepting(False)
    yield
    testing.set_accepting(request.config.getoption("--accept"))


def write(folder: Path, text: str) -> Path:
    path = folder / "case.txt"
    path.write_text(text)
    return path


def test_equal_text_passes(tmp_path: Path) -> None:
    path = write(tmp_path, "one\ntwo\n")
    testing.assert_golden("one\ntwo", path)
    testing.assert_golden("one\ntwo\n", path)


def test_a_difference_fails_and_is_marked(tmp_path: Path) -> None:
    path = write(tmp_path, "one\ntwo\nthree\n")
    with pytest.raises(testing.GoldenError) as caught:
        testing.assert_golden("one\ntwin\nthree\n", path)
    message = str(caught.value)
    assert "-two" in message
    assert "+twin" in message
    mark = message[message.index("first difference") :].splitlines()
    assert mark[0] == "first difference, line 2:"
    assert mark[3].index("^") == mark[1].index("two") + 2
    assert "--accept" in message
    assert path.read_text() == "one\ntwo\nthree\n"


def test_a_longer_text_fails(tmp_path: Path) -> None:
    with pytest.raises(testing.GoldenError, match="line 2"):
        testing.assert_golden("one\ntwo\n", write(tmp_path, "one\n"))


def test_a_missing_golden_fails_and_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(testing.GoldenError, match="--accept"):
        testing.assert_golden("one\n", tmp_path / "new.txt")
    assert not (tmp_path / "new.txt").exists()


def test_accepting_writes(tmp_path: Path, accepting: None) -> None:
    testing.assert_golden("one\n", tmp_path / "folder" / "new.txt")
    assert (tmp_path / "folder" / "new.txt").read_text() == "one\n"


def test_a_program_is_printed(tmp_path: Path) -> None:
    text = "# burnish 1\ngraph main(%x: f32[2]) {\n  %a = aten.neg(%x) : f32[2]\n  return %a\n}\n"
    testing.assert_golden(Program.parse(text), write(tmp_path, text))


def test_a_right_case_passes(tmp_path: Path) -> None:
    testing.check_case(write(tmp_path, CASE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  return %a\n}\n", "  return %b\n}\n"),
        ("  return %a\n}\n", "  return %a\n}\n=====\nskip drop-copies %b: no reason\n"),
        ("# run: canonicalize", "# run: cse"),
    ],
)
def test_a_wrong_case_fails_until_accepted(tmp_path: Path, old: str, new: str) -> None:
    wrong = CASE.replace(old, new)
    assert wrong != CASE
    path = write(tmp_path, wrong)
    with pytest.raises(testing.GoldenError):
        testing.check_case(path)
    assert path.read_text() == wrong
    testing.set_accepting(True)
    testing.check_case(path)
    assert path.read_text() != wrong
    testing.set_accepting(False)
    testing.check_case(path)


def test_what_changes_nothing_reads_unchanged(tmp_path: Path, accepting: None) -> None:
    path = write(tmp_path, CASE.replace("canonicalize", "cse"))
    testing.check_case(path)
    assert path.read_text().endswith("=====\nunchanged\n")


def test_a_case_that_fires_is_not_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path, CASE.partition("=====")[0] + "=====\nunchanged\n")
    with pytest.raises(testing.GoldenError, match="unchanged"):
        testing.check_case(path)


@pytest.mark.parametrize("line", ["# about: a copy goes\n", "# run: canonicalize\n"])
def test_a_case_needs_its_head(tmp_path: Path, line: str) -> None:
    with pytest.raises(testing.GoldenError, match="a case starts with"):
        testing.check_case(write(tmp_path, CASE.replace(line, "")))


def test_a_case_without_expectation_fails(tmp_path: Path) -> None:
    with pytest.raises(testing.GoldenError, match="--accept"):
        testing.check_case(write(tmp_path, CASE.partition("=====")[0]))
