"""`burnish opt`: run passes on a Program, and look at what each of them does.

Standard output holds the Program (or, with `--json`, what the passes did); everything else goes to standard error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_program, print_table, say
from burnish.tools.verb import (
    CalibrationOption,
    JsonFlag,
    PassesOption,
    ProgramArgument,
    ProgramOutputOption,
    SeedOption,
    TargetOption,
)

if TYPE_CHECKING:
    from burnish.compiler.pipeline import PassRecord, Pipeline
    from burnish.compiler.program import Program

__all__ = ["opt"]


def opt(
    file: ProgramArgument,
    passes: PassesOption,
    backend: TargetOption = None,
    calibration: CalibrationOption = None,
    output: ProgramOutputOption = None,
    print_after: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Print the program after this pass: cse, cse#2, or all. May be repeated."),
    ] = None,
    print_changed: Annotated[bool, typer.Option("--print-changed", help="Print it after passes that changed it.")] = (
        False
    ),
    dump_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the text after each pass into this folder, numbered.")
    ] = None,
    time: Annotated[bool, typer.Option("--time", help="Print the seconds that each pass took.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print the rules that fired, and those held back.")] = False,
    verify: Annotated[
        int,
        typer.Option(
            min=0, max=4, help="After each pass check 1 structure, 2 types, 3 the text form, 4 numbers on samples."
        ),
    ] = 2,
    stop_after: Annotated[str | None, typer.Option(metavar="LABEL", help="The last pass to run.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Stop after N rewrites in all, to bisect a failure.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Run passes on a program.

    [dim]burnish opt resnet.burnish -p canonicalize,fold-batch-norm --stats -o folded.burnish[/]
    """
    from burnish.compiler.pipeline import run_pipeline
    from burnish.compiler.progress import working
    from burnish.tools.model_files import check_writable, read_program, write_program
    from burnish.tools.pass_context import pass_context

    check_writable(output)
    pipeline, context = pass_context(passes, backend, calibration, seed)
    _check_labels(pipeline, print_after or [])
    program = read_program(file)
    watcher = _Watcher(frozenset(print_after or ()), print_changed, dump_dir)
    watcher.start(program)
    with working("passes", enabled=not (print_after or print_changed)):
        program, records = run_pipeline(
            pipeline, program, context, verify=verify, observer=watcher, limit=limit, stop_after=stop_after
        )
    for note in context.notes:
        say("note", note, "bold")
    for warning in program.warnings:
        say("warning", warning, "bold yellow")
    if time:
        _print_times(records)
    if stats:
        _print_statistics(records)
    if output is not None or not as_json:
        write_program(program, output)
    if as_json:
        print_json({"file": output, "passes": [_as_data(record) for record in records]})


class _Watcher:
    """Prints and dumps the Program after passes, as the user chose."""

    def __init__(self, labels: frozenset[str], print_changed: bool, folder: Path | None) -> None:
        self.labels, self.print_changed, self.folder = labels, print_changed, folder
        self.number = 0

    def start(self, program: Program) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._dump("input", program)

    def __call__(self, record: PassRecord, before: Program, after: Program) -> None:
        chosen = "all" in self.labels or not self.labels.isdisjoint(_names(record.label))
        if chosen or (self.print_changed and record.changed):
            say("after", f"{record.label}{'' if record.changed else ' (no change)'}", "bold")
            print_program(after.print(), error=True)
        if self.folder is not None:
            self._dump(record.label, after)

    def _dump(self, label: str, program: Program) -> None:
        assert self.folder is not None
        file = self.folder / f"{self.number:02d}-{label.replace('/', '-')}.txt"
        file.write_text(program.print(), encoding="utf-8")
        self.number += 1


def _names(label: str) -> set[str]:
    """Return how a pass may be chosen: `repeat/2/cse` by `repeat`, by `cse`, and as it stands."""
    parts = label.split("/")
    return {label, parts[0], parts[-1]}


def _check_labels(pipeline: Pipeline, wanted: list[str]) -> None:
    from burnish.compiler.errors import PipelineError
    from burnish.compiler.pipeline import Pipeline, Repeat

    def known(part: Pipeline) -> list[str]:
        inner = [name for each in part if isinstance(each, Repeat) for name in known(Pipeline(each.passes))]
        return list(dict.fromkeys([*part.labels(), *inner]))

    labels = known(pipeline)
    for label in wanted:
        parts = label.split("/")
        if label != "all" and not {parts[0], parts[-1]} <= set(labels):
            raise PipelineError(f"the pipeline has no pass {label!r}: its passes are {', '.join(labels)}")


def _print_times(records: list[PassRecord]) -> None:
    rows = [(record.label, record.seconds, record.verify_seconds) for record in records]
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    cells = [(label, f"{seconds:.3f}", f"{checking:.3f}") for label, seconds, checking in rows]
    print_table(("pass", "seconds", "verifying"), cells, right=("seconds", "verifying"), error=True)


def _print_statistics(records: list[PassRecord]) -> None:
    rows: list[tuple[str, str, str, str]] = []
    for record in records:
        lines = [(rule, str(count), "") for rule, count in sorted(record.rules.items())]
        lines += [(rule, str(count), f"held back: {reason}") for (rule, reason), count in _held_back(record).items()]
        rows += [(record.label, *line) for line in lines or [("", "0", "no change")]]
    print_table(("pass", "rule", "count", ""), rows, right=("count",), error=True)


def _held_back(record: PassRecord) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for skip in record.skips:
        key = (skip.rule, skip.reason)
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


def _as_data(record: PassRecord) -> dict[str, Any]:
    return {
        "pass": record.label,
        "text": record.text,
        "changed": record.changed,
        "nodes": record.program.node_count() if record.program is not None else None,
        "rewrites": record.rewrites,
        "rules": dict(sorted(record.rules.items())),
        "skips": [
            {"rule": each.rule, "node": each.node, "operator": each.operator, "reason": each.reason}
            for each in record.skips
        ],
        "drift": record.drift,
        "seconds": record.seconds,
        "verify_seconds": record.verify_seconds,
    }
