"""Coverage: every model of the zoo captured, compiled with the default pipeline, run by each backend and compared.

    PYTHONPATH=src python -m benchmarks.coverage [--filter REGEX] [--json FILE] [--only capture]

Each model runs in a process of its own, forked after the imports, under a limit of time and memory; a crash is a row of
the table. An outcome is compared with the original module in eager PyTorch, at the captured batch size and at another;
where the report says that dimension 0 could not be dynamic, at the captured size alone, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.utils._pytree as pytree

import burnish
from benchmarks.models import Entry, zoo
from burnish.compiler import structure
from burnish.compiler.numerics import worst_drift
from burnish.compiler.verify import verify

__all__ = ["Outcome", "Row", "batches_of", "eager", "fresh", "import_models", "isolated", "main", "measure", "text_of"]

Result = TypeVar("Result")

BACKENDS = ("onnx", "torchscript")
BATCHES = (2, 3)
TOLERANCE = 1e-4
_SECONDS = 300
_MEMORY = 12 << 30


@dataclass
class Outcome:
    """How one step went.

    Attributes:
        passed: it ran, and the drift is within the tolerance.
        drift: worst relative drift, None where nothing could be compared.
        seconds: time of compiling and of running.
        reason: why it did not pass.
    """

    passed: bool = False
    drift: float | None = None
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Row:
    """What happened to one model: nodes captured, the batch sizes compared, and an outcome by step."""

    name: str
    family: str
    nodes: int = 0
    batches: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filter", default="", metavar="REGEX", help="models whose name or family matches")
    parser.add_argument("--only", choices=("capture", *BACKENDS), help="do this step alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    options = parser.parse_args()
    steps = ("capture", *BACKENDS) if options.only is None else tuple(dict.fromkeys(("capture", options.only)))
    pattern = re.compile(options.filter)
    chosen = [entry for entry in zoo() if pattern.search(entry.name) or pattern.search(entry.family)]
    import_models()
    print("|".join(["", *_header(steps), ""]))
    print("|".join(["", *("---" for _ in "|".join(_header(steps)).split("|")), ""]), flush=True)
    rows = []
    for entry in chosen:
        rows.append(_isolated(entry, steps))
        print("|".join(["", *_cells(rows[-1], steps), ""]), flush=True)
    print("\n" + _summary(rows, steps))
    if options.json is not None:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))


def measure(entry: Entry, steps: tuple[str, ...]) -> Row:
    """Take one model through `steps` in this process."""
    row = Row(entry.name, entry.family, batches=BATCHES)
    start = time.perf_counter()
    outcome = row.outcomes["capture"] = Outcome()
    with _recorded(outcome):
        model = entry.model()
        expected = {batch: eager(model, entry.inputs(batch)) for batch in BATCHES}
        start = time.perf_counter()
        program = burnish.capture(model, entry.inputs(BATCHES[0]))
        outcome.seconds = time.perf_counter() - start
        row.nodes, row.notes = program.node_count(), program.notes
        row.batches = batches_of(program)
        verify(program, 3)
        called = {batch: program.copy() for batch in row.batches}
        _judge(outcome, entry, program, called, expected)
    if not row.nodes:
        return row
    for backend in steps[1:]:
        outcome = row.outcomes[backend] = Outcome()
        start = time.perf_counter()
        with _recorded(outcome):
            compiled = burnish.compile(program.copy(), inputs=None, backend=backend, progress=False)
            called = {}
            for batch in row.batches:
                called[batch] = fresh(compiled)
            _judge(outcome, entry, program, called, expected)
        outcome.seconds = time.perf_counter() - start
    return row


def batches_of(program: burnish.Program) -> tuple[int, ...]:
    """Return the batch sizes at which to compare: the captured one alone where dimension 0 is not dynamic."""
    fixed = any("dimension 0" in note or "dynamic" in note for note in program.notes)
    return BATCHES[:1] if fixed else BATCHES


def fresh(compiled: burnish.Compiled) -> Any:
    """Return what calls `compiled` with its buffers as at capture."""

    def call(*args: Any, **kwargs: Any) -> Any:
        compiled.artifact.reset()
        return compiled(*args, **kwargs)

    return call


def _judge(outcome: Outcome, entry: Entry, program: Any, called: dict[int, Any], expected: dict[int, Any]) -> None:
    worst = 0.0
    for batch, function in called.items():
        inputs = entry.inputs(batch)
        with torch.no_grad():
            result = function(**inputs) if isinstance(inputs, dict) else function(*inputs)
        found = structure.flatten(program.signature.outputs, result, "the outputs")
        wanted = structure.flatten(program.signature.outputs, expected[batch], "the model's outputs")
        worst = max(worst, worst_drift([found[name] for name in wanted], list(wanted.values())))
    outcome.drift = worst
    outcome.passed = worst <= TOLERANCE
    if not outcome.passed:
        outcome.reason = f"drift {worst:.2g}"


def eager(model: torch.nn.Module, inputs: Any) -> Any:
    """Return what the model gives in eager PyTorch; its buffers and `inputs` stay as they are."""
    # Forward may update buffers and write to its inputs: it gets copies of both.
    state = {name: value.clone() for name, value in model.named_buffers()}
    inputs = copy.deepcopy(inputs)
    with torch.no_grad():
        result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        result = pytree.tree_map_only(torch.Tensor, torch.clone, result)
        for name, value in model.named_buffers():
            value.copy_(state[name])
    return result


@contextlib.contextmanager
def _recorded(outcome: Outcome) -> Any:
    try:
        yield
    except Exception as error:
        outcome.passed = False
        outcome.reason = text_of(error)
        if os.environ.get("BURNISH_COVERAGE_TRACE"):
            traceback.print_exc()


def text_of(error: Exception) -> str:
    """Return what an error is and the first lines that it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400]


def _isolated(entry: Entry, steps: tuple[str, ...]) -> Row:
    """Measure in a forked process; whatever ends it becomes the reason."""
    found, reason = isolated(functools.partial(measure, entry, steps))
    row = found or Row(entry.name, entry.family)
    for step in steps:
        row.outcomes.setdefault(step, Outcome(reason=reason or "not captured"))
    return row


def isolated(work: Callable[[], Result], seconds: int = _SECONDS) -> tuple[Result | None, str]:
    """Return what `work` returns in a forked process under a limit of memory, or None and what ended it."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, work))
    process.start()
    there.close()
    result, reason = None, ""
    try:
        if here.poll(seconds):
            result = here.recv()
        else:
            reason = f"took more than {seconds} s"
            process.kill()
    except EOFError:
        process.join()
        reason = f"the process ended with status {process.exitcode}"
    process.join()
    return result, reason


def _work(there: Connection, work: Callable[[], Any]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    there.send(work())
    there.close()


def import_models() -> None:
    """Import, once for all forked processes, what models and captures need."""
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # The first capture of a process imports much: done before the fork, it is done once.
    burnish.capture(torch.nn.Linear(1, 1), (torch.zeros(2, 1),))


def _header(steps: tuple[str, ...]) -> list[str]:
    return ["name", "family", "nodes", "batches", *(f"{step} | drift | s" for step in steps), "reason"]


def _cells(row: Row, steps: tuple[str, ...]) -> list[str]:
    cells = [row.name, row.family, str(row.nodes or ""), " ".join(map(str, row.batches))]
    for step in steps:
        outcome = row.outcomes[step]
        drift = "" if outcome.drift is None else f"{outcome.drift:.1e}"
        cells.append(f"{'pass' if outcome.passed else 'FAIL'} | {drift} | {outcome.seconds:.1f}")
    reasons = [f"{step}: {row.outcomes[step].reason}" for step in steps if row.outcomes[step].reason]
    return [*cells, "; ".join([*reasons, *row.notes]).replace("|", "/")]


def _summary(rows: list[Row], steps: tuple[str, ...]) -> str:
    lines = [f"{len(rows)} models; batch sizes {', '.join(map(str, BATCHES))}; drift allowed {TOLERANCE:g}"]
    for step in steps:
        passed = Counter(row.family for row in rows if row.outcomes[step].passed)
        share = sum(passed.values()) / max(len(rows), 1)
        total = Counter(row.family for row in rows)
        families = ", ".join(f"{family} {passed[family]}/{total[family]}" for family in sorted(total))
        lines.append(f"{step}: {sum(passed.values())} of {len(rows)} pass ({share:.1%}): {families}")
    static = sum(row.batches == BATCHES[:1] for row in rows)
    lines.append(f"compared at the captured size alone, because dimension 0 cannot be dynamic: {static}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
