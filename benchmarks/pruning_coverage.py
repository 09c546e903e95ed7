"""Pruning coverage: every model of the zoo pruned by burnish and checked against an oracle, beside Torch-Pruning.

    python -m benchmarks.pruning_coverage [--filter REGEX] [--ratios 0.25,0.5] [--json FILE]

burnish captures, canonicalizes, fuses and prunes. "correct": at two batch sizes the pruned Program computes what the
one before computes with zeros for weights where something reads what went (`tests/pruning_oracle.py`), and what either
backend makes of it computes the same. "nothing": all that it has lies between its inputs and outputs, which keep their
sizes. "refused": the model cannot be captured, or something else keeps all of it. The rest is "WRONG". Where
dimension 0 cannot be dynamic, the captured batch size is the only one.

Torch-Pruning prunes the module, with what `pruning_peer` tells it. There is no oracle for it: "runs" says that at both
batch sizes outputs come out, of the same shapes, and that there are fewer parameters. More may go than with burnish,
which by default keeps the features that norms take statistics over. Where it takes more than a minute, its search for
groups finds no end, mostly in attention with two queries to a key, as grouped attention has here: with four, it takes
milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch.utils._pytree as pytree

import burnish
from benchmarks.coverage import BACKENDS, BATCHES, TOLERANCE, batches_of, fresh, import_models, isolated, text_of
from benchmarks.models import Entry, zoo
from benchmarks.pruning_peer import call, pruned_module
from burnish import Compiled, Context, Pipeline, Program
from burnish.compiler.errors import CaptureError
from burnish.compiler.numerics import worst_drift
from burnish.compiler.pipeline import run_pipeline
from burnish.passes.pruning import prune
from burnish.passes.pruning.layers import STAYS
from burnish.passes.pruning.propagate import propagate
from burnish.passes.pruning.shrink import shrink
from tests.pruning_oracle import with_zeros

__all__ = ["Outcome", "Row", "by_burnish", "by_torch_pruning", "main"]

TOOLS = ("burnish", "Torch-Pruning")
# Why positions stay that lie between inputs and outputs, or make a number of what lies there.
_ENDS = {STAYS, "it is an output", "it is a tap of a convolution", "it is reduced over", "what it is added to stays"}
_BEFORE = "canonicalize,fold-constants,fuse,dce"
_SECONDS = {"burnish": 300, "Torch-Pruning": 60}


@dataclass
class Outcome:
    """How it went at one ratio.

    Attributes:
        verdict: correct, nothing, refused or WRONG; of Torch-Pruning: runs, refused or fails.
        gone: the part of the parameters that is gone.
        drift: the worst relative drift, of burnish alone.
        reason: why it is not correct, or does not run.
    """

    verdict: str
    gone: float = 0.0
    drift: float | None = None
    reason: str = ""


@dataclass
class Row:
    """What happened to one model: an outcome by tool and ratio."""

    name: str
    family: str
    outcomes: dict[str, dict[float, Outcome]]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filter", default="", metavar="REGEX", help="models whose name or family matches")
    parser.add_argument("--ratios", default="0.25,0.5", help="parts of every group to remove")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    options = parser.parse_args()
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    pattern = re.compile(options.filter)
    chosen = [entry for entry in zoo() if pattern.search(entry.name) or pattern.search(entry.family)]
    import_models()
    _import_tools()
    header = ["name", "family", *(f"{tool}, {ratio:.0%}" for ratio in ratios for tool in TOOLS), "drift", "reason"]
    print("|".join(["", *header, ""]))
    print("|".join(["", *("---" for _ in header), ""]), flush=True)
    rows = []
    for entry in chosen:
        rows.append(_row(entry, ratios))
        print("|".join(["", *_cells(rows[-1], ratios), ""]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    print("\n" + _summary(rows, ratios))


def by_burnish(entry: Entry, ratios: list[float]) -> dict[float, Outcome]:
    """Prune one model with burnish in this process."""
    try:
        captured = burnish.capture(entry.model(), entry.inputs(BATCHES[0]))
    except CaptureError as error:
        return {ratio: Outcome("refused", reason=text_of(error)) for ratio in ratios}
    program, _ = run_pipeline(Pipeline.parse(_BEFORE), captured, Context(progress=False))
    return {ratio: _recorded("WRONG", _pruned, entry, program, ratio) for ratio in ratios}


def by_torch_pruning(entry: Entry, ratios: list[float]) -> dict[float, Outcome]:
    """Prune one model with Torch-Pruning in this process."""
    return {ratio: _recorded("fails", _pruned_module, entry, ratio) for ratio in ratios}


def _recorded(verdict: str, work: Callable[..., Outcome], *args: Any) -> Outcome:
    try:
        return work(*args)
    except Exception as error:
        return Outcome(verdict, reason=text_of(error))


def _pruned_module(entry: Entry, ratio: float) -> Outcome:
    gone, reason = pruned_module(entry.model(), [entry.inputs(batch) for batch in BATCHES], ratio)
    if reason:
        return Outcome("fails", reason=reason)
    return Outcome("runs", gone) if gone > 0 else Outcome("refused", reason="nothing is removed")


def _pruned(entry: Entry, program: Program, ratio: float) -> Outcome:
    context, passes = Context(progress=False), Pipeline.parse(f"prune{{ratio={ratio},round_to=1}}")
    with mock.patch.object(prune, "shrink", wraps=shrink) as shrinking:
        smaller, _ = run_pipeline(passes, program, context, verify=3)
    gone = 1 - smaller.parameter_count() / max(program.parameter_count(), 1)
    if not shrinking.called or gone <= 0:
        reasons = Counter(propagate(program).classes.frozen.values())
        verdict = "nothing" if reasons.keys() <= _ENDS else "refused"
        told = ", ".join(f"{reason} ({times})" for reason, times in reasons.most_common(4))
        return Outcome(verdict, reason="; ".join([*context.notes, f"what stays: {told}"]))
    _, dependencies, kept = shrinking.call_args.args
    batches = batches_of(program)
    results = _results(smaller, entry, batches)
    drifts = {"the oracle": worst_drift(results, _results(with_zeros(program, dependencies, kept), entry, batches))}
    for backend in BACKENDS:
        compiled = burnish.compile(smaller.copy(), [], backend=backend, verify=0, progress=False)
        drifts[backend] = worst_drift(_results(compiled, entry, batches), results)
    apart = [f"drift {drift:.2g} from {name}" for name, drift in drifts.items() if drift > TOLERANCE]
    return Outcome("WRONG" if apart else "correct", gone, max(drifts.values()), ", ".join(apart))


def _results(model: Program | Compiled, entry: Entry, batches: tuple[int, ...]) -> list[Any]:
    found = []
    for batch in batches:
        function = model.copy() if isinstance(model, Program) else fresh(model)
        found += pytree.tree_leaves(call(function, entry.inputs(batch)))
    return found


def _import_tools() -> None:
    """Import what the forked processes need; an edit of a pass meanwhile then changes nothing."""
    entry = next(entry for entry in zoo() if entry.name == "bert")
    for function in (by_burnish, by_torch_pruning):
        function(entry, [0.5])


def _row(entry: Entry, ratios: list[float]) -> Row:
    outcomes = {}
    for tool, function, verdict in zip(TOOLS, (by_burnish, by_torch_pruning), ("WRONG", "fails"), strict=True):
        found, reason = isolated(functools.partial(function, entry, ratios), _SECONDS[tool])
        outcomes[tool] = found or {ratio: Outcome(verdict, reason=reason) for ratio in ratios}
    return Row(entry.name, entry.family, outcomes)


def _cells(row: Row, ratios: list[float]) -> list[str]:
    found = [row.outcomes[tool][ratio] for ratio in ratios for tool in TOOLS]
    drifts = [each.drift for each in found if each.drift is not None]
    reasons = [
        f"{tool}: {reason}"
        for tool in TOOLS
        for reason in dict.fromkeys(row.outcomes[tool][ratio].reason for ratio in ratios)
        if reason
    ]
    verdicts = [f"{each.verdict}, {each.gone:.0%} gone" if each.gone else each.verdict for each in found]
    drift = f"{max(drifts):.1e}" if drifts else ""
    return [row.name, row.family, *verdicts, drift, "; ".join(reasons).replace("|", "/")]


def _summary(rows: list[Row], ratios: list[float]) -> str:
    lines = [f"{len(rows)} models; batch sizes {', '.join(map(str, BATCHES))}; drift allowed {TOLERANCE:g}"]
    total = Counter(row.family for row in rows)
    for ratio in ratios:
        for tool, good in zip(TOOLS, ("correct", "runs"), strict=True):
            verdicts = Counter(row.outcomes[tool][ratio].verdict for row in rows)
            counts = ", ".join(f"{times} {verdict}" for verdict, times in sorted(verdicts.items()))
            passed = Counter(row.family for row in rows if row.outcomes[tool][ratio].verdict == good)
            families = ", ".join(f"{family} {passed[family]}/{total[family]}" for family in sorted(total))
            lines.append(f"{tool}, {ratio:.0%}: {counts}; {good}: {families}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
