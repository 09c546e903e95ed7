"""Readiness: what `burnish check` says of every model of the zoo, lowered for a target, in float32 and in int8.

    python -m benchmarks.readiness [--filter REGEX] [--target tensorrt-11] [--passes float32,int8] [--json FILE]

A model passes when nothing is found; otherwise the row says what. Nothing is built, and no pair is calibrated on real
data: the findings are about the graph. The example inputs give the profile.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import burnish
from benchmarks.coverage import import_models, isolated, text_of
from benchmarks.models import Entry, zoo
from burnish.backends.readiness import Target, sample_ranges
from burnish.compiler.context import Context
from burnish.compiler.loading import parse_backend
from burnish.compiler.pipeline import Pipeline, run_pipeline

__all__ = ["PIPELINES", "Row", "check", "main"]

PIPELINES = {"float32": "default", "int8": "default,quantize"}
_DIALECTS = {"onnxruntime": "ort", "openvino": "openvino"}
_BATCH = 2


@dataclass
class Row:
    """What was found of one model.

    Attributes:
        name: of the model.
        family: its family.
        found: findings as texts by the name of the pipeline; a failure is one, too.
        seconds: time of checking, without lowering.
    """

    name: str
    family: str
    found: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filter", default="", metavar="REGEX", help="models whose name or family matches")
    parser.add_argument("--target", default="tensorrt-11", help="as `burnish check` takes it")
    parser.add_argument("--passes", default="float32,int8", help=f"some of {', '.join(PIPELINES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    options = parser.parse_args()
    target, steps = Target.parse(options.target), options.passes.split(",")
    pattern = re.compile(options.filter)
    chosen = [entry for entry in zoo() if pattern.search(entry.name) or pattern.search(entry.family)]
    import_models()
    print("|".join(["", "name", "family", *steps, "reason", ""]))
    print("|".join(["", *("---" for _ in range(3 + len(steps))), ""]), flush=True)
    rows = []
    for entry in chosen:
        found, reason = isolated(functools.partial(check, entry, target, steps))
        rows.append(found or Row(entry.name, entry.family, {step: [reason] for step in steps}))
        print("|".join(["", *_cells(rows[-1], steps), ""]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    for step in steps:
        passed = sum(not row.found[step] for row in rows)
        print(f"{step}: {passed} of {len(rows)} pass ({passed / max(len(rows), 1):.1%})")


def check(entry: Entry, target: Target, steps: list[str]) -> Row:
    """Capture a model in this process, and check what each pipeline makes of it."""
    row = Row(entry.name, entry.family)
    backend, options = parse_backend(f"onnx{{dialect={_DIALECTS.get(target.name, 'tensorrt')}}}")
    try:
        captured = burnish.capture(entry.model(), entry.inputs(_BATCH))
    except burnish.BurnishError as error:
        row.found = {step: [text_of(error)] for step in steps}
        return row
    for step in steps:
        data: list[Any] = [entry.inputs(_BATCH)]
        context = Context(target=backend.target(options), calibration=data, progress=False)
        try:
            pipeline = Pipeline.parse(PIPELINES[step], backend.default_passes(options))
            program, _ = run_pipeline(pipeline, captured, context, verify=0)
            row.found[step] = _found(program, target, row)
        except (burnish.BurnishError, RuntimeError) as error:
            row.found[step] = [text_of(error)]
    return row


def _found(program: burnish.Program, target: Target, row: Row) -> list[str]:
    with torch.no_grad():
        graph, missing = target.lowered(program, row.name)
    if graph is None:
        return [str(each) for each in missing]
    start = time.perf_counter()
    found = target.findings(graph, sample_ranges(program, graph) if target.table is not None else {})
    row.seconds += time.perf_counter() - start
    return [f"{each.operator}: {each.reason}" for each in found]


def _cells(row: Row, steps: list[str]) -> list[str]:
    marks = [f"{len(row.found[step])} found" if row.found[step] else "ok" for step in steps]
    counts = Counter(text for step in steps for text in dict.fromkeys(row.found[step]))
    reasons = "; ".join(counts)
    return [row.name, row.family, *marks, reasons if len(reasons) <= 300 else f"{reasons[:297]}..."]


if __name__ == "__main__":
    main()
