"""Golden files: expected texts under version control, shared by burnish's own tests and those of other passes.

`assert_golden` compares one text with one file. `check_case` runs one case of a pass, a file of four parts:

    # about: a batch norm whose convolution has two users stays
    # run: fold-batch-norm
    <program text>
    =====
    <the text afterwards, or the word `unchanged`>
    =====
    skip fold-batch-norm %bn: the convolution has 2 users

A line `# backend: onnx{dialect=tensorrt}` after the two at the head runs the passes for that backend's target; passes
that need calibration data get the random inputs that level 4 compares on. The last part has a line for every skip that
the passes recorded, sorted, and is absent when there is none. The `#` lines that head a program's text (version,
passes, facts) are left out of the expected part, and `# burnish 1` may be left out of the first. Files are written only
while accepting: `set_accepting(True)`, or `pytest --accept` where conftest.py has wired that.

Not handled: a program text with a line `=====`, which no printer makes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from burnish.compiler.context import Context, Target
from burnish.compiler.loading import parse_backend
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program

__all__ = ["GoldenError", "assert_golden", "check_case", "set_accepting"]

_BAR = "====="
_UNCHANGED = "unchanged"
_DIRECTIVE = re.compile(r"# (about|run|backend): *(.*\S) *$")
_VERSION = "# burnish 1"


class GoldenError(AssertionError):
    """A text differs from its golden file, the file is missing, or a case is not written as it must be."""


@dataclass(slots=True)
class _State:
    accepting: bool = False


_STATE = _State()


def set_accepting(accepting: bool) -> None:
    """Let golden files be written (True) or only compared (False, the state at the start)."""
    _STATE.accepting = accepting


def assert_golden(actual: Program | str, path: str | Path) -> None:
    """Compare a text, or a Program's text, with the file at `path`; write the file when accepting.

    Raises:
        GoldenError: they differ, or there is no file; the message shows where, and how to accept.
    """
    text = actual.print() if isinstance(actual, Program) else actual
    _compare(text if text.endswith("\n") else f"{text}\n", Path(path))


def check_case(path: str | Path) -> None:
    """Run one case: through its pipeline at verification level 4, then compare text and skips with the file.

    When accepting, the expected part and the skips are rewritten; the head and the first program never are.

    Raises:
        GoldenError: the outcome differs, or the file does not follow the form in this module's docstring.
        PipelineError, PassError, TextError: as the pipeline and the parser raise them.
    """
    path = Path(path)
    case = _Case.read(path)
    before = Program.parse(case.source if case.source.startswith(_VERSION) else f"{_VERSION}\n{case.source}")
    if not before.samples:
        raise GoldenError(f"{path}: the program has no input, so level 4 compares nothing: give it one")
    context = Context(target=case.target, calibration=[before.samples])
    after, records = run_pipeline(Pipeline.parse(case.pipeline), before, context, verify=4)
    changed = any(record.changed for record in records)
    if changed and _body(after.print()) == _body(before.print()):
        raise GoldenError(f"{path}: the passes changed something that the text does not show")
    skips = sorted({f"skip {skip.rule} %{skip.node}: {skip.reason}" for record in records for skip in record.skips})
    parts = [case.head + case.source, f"{_body(after.print()) if changed else _UNCHANGED}\n"]
    parts += ["".join(f"{line}\n" for line in skips)] if skips else []
    _compare(f"{_BAR}\n".join(parts), path)


@dataclass(frozen=True, slots=True)
class _Case:
    """A case taken apart: its `# name: value` lines as written, the pipeline, its target, and the program."""

    head: str
    pipeline: str
    target: Target
    source: str

    @staticmethod
    def read(path: Path) -> _Case:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found: dict[str, str] = {}
        for line in lines:
            if not (match := _DIRECTIVE.match(line)):
                break
            found[match[1]] = match[2]
        if found.keys() - {"backend"} != {"about", "run"}:
            raise GoldenError(f"{path}: a case starts with the lines `# about: ...` and `# run: <pipeline>`")
        end = next((index for index, line in enumerate(lines) if line.rstrip() == _BAR), len(lines))
        if end == len(lines) and not _STATE.accepting:
            raise GoldenError(f"{path}: no `{_BAR}` line and nothing expected after it. {_how_to_accept()}")
        target = Target()
        if "backend" in found:
            backend, options = parse_backend(found["backend"])
            target = backend.target(options)
        return _Case("".join(lines[: len(found)]), found["run"], target, "".join(lines[len(found) : end]))


def _body(text: str) -> str:
    """Return a program's text without the `#` lines at its head and the last newline."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[start:])


def _compare(actual: str, path: Path) -> None:
    expected = path.read_text(encoding="utf-8") if path.exists() else None
    if actual == expected:
        return
    if _STATE.accepting:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual, encoding="utf-8")
        return
    if expected is None:
        raise GoldenError(f"there is no golden file {path}. {_how_to_accept()}\n\n{actual}")
    raise GoldenError(f"the text differs from {path}\n{_difference(expected, actual)}\n{_how_to_accept()}")


def _how_to_accept() -> str:
    return "Run the test again with --accept to write it, and read what it wrote."


def _difference(expected: str, actual: str) -> str:
    """Return a unified diff, below it the first line that differs with a caret at the first column that does."""
    old, new = expected.splitlines(), actual.splitlines()
    diff = difflib.unified_diff(old, new, "golden", "now", lineterm="")
    longest = max(len(old), len(new))
    pairs = zip([*old, *[""] * (longest - len(old))], [*new, *[""] * (longest - len(new))], strict=True)
    number, (was, now) = next(
        ((index, pair) for index, pair in enumerate(pairs, 1) if pair[0] != pair[1]), (longest, ("", ""))
    )
    column = next((index for index, pair in enumerate(zip(was, now, strict=False)) if pair[0] != pair[1]), None)
    column = min(len(was), len(now)) if column is None else column
    mark = f"first difference, line {number}:\n  golden  {was}\n  now     {now}\n          {' ' * column}^"
    return "\n".join([*diff, "", mark])
