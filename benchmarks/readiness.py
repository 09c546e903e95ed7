"""Readiness: the file of every model of the zoo for a target, in float32, float16 and int8: checked, linted and run.

    python -m benchmarks.readiness [--filter REGEX] [--target tensorrt-11] [--passes float32,float16,int8] [--json FILE]

Each file is written by `onnx{dialect=...}` for the target, and then
- `burnish check` looks at it: nothing may be found. The example inputs give the profile;
- Polygraphy lints and inspects it: nothing may be complained of;
- ONNX Runtime runs it as it stands, without optimizations of its own, on the example inputs. In float32 the outputs are
  compared with the model in eager PyTorch. `precision` and `quantize` are lossy by contract: there the outputs are
  compared with the Program that they made, run in eager PyTorch, and how far the file is from the model is printed too.

Nothing is built, and no pair is calibrated on real data: the weights are random, and so are the inputs. A row names
everything that is not as it should be. `ALLOWED` has the drifts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import burnish
from benchmarks.coverage import TOLERANCE, eager, import_models, isolated, text_of
from benchmarks.models import Entry, zoo
from benchmarks.polygraphy_lint import complaints
from burnish.backends.onnx import OnnxBackend
from burnish.backends.readiness import Target, graph_of_file, sample_ranges
from burnish.compiler import interpreter, structure
from burnish.compiler.context import Context
from burnish.compiler.graphs import calls
from burnish.compiler.loading import parse_backend
from burnish.compiler.numerics import comparable, worst_drift
from burnish.compiler.operators import is_random
from burnish.compiler.pipeline import Pipeline, run_pipeline

__all__ = ["ALLOWED", "PIPELINES", "Outcome", "Row", "examine", "main"]

PIPELINES = {"float32": "default", "float16": "default,precision{dtype=fp16}", "int8": "default,quantize"}
ALLOWED = {"float32": TOLERANCE, "float16": 1e-2, "int8": 1e-2}
_DIALECTS = {"onnxruntime": "ort", "openvino": "openvino"}
_BATCH = 2


@dataclass
class Outcome:
    """What was found of one file.

    Attributes:
        found: by `burnish check`; or why there is no file.
        lint: complaints of Polygraphy.
        failure: of ONNX Runtime.
        drift: between the file in ONNX Runtime and what it must agree with; None where nothing could be compared.
        from_model: between the file in ONNX Runtime and the model.
    """

    found: list[str] = field(default_factory=list)
    lint: list[str] = field(default_factory=list)
    failure: str = ""
    drift: float | None = None
    from_model: float | None = None

    def agrees(self, step: str) -> bool:
        """Tell whether the file's results are within what the pipeline `step` allows."""
        return self.drift is not None and self.drift <= ALLOWED[step]


@dataclass
class Row:
    """One model, with an outcome by the name of the pipeline."""

    name: str
    family: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filter", default="", metavar="REGEX", help="models whose name or family matches")
    parser.add_argument("--target", default="tensorrt-11", help="as `burnish check` takes it")
    parser.add_argument("--passes", default=",".join(PIPELINES), help=f"some of {', '.join(PIPELINES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    options = parser.parse_args()
    target, steps = Target.parse(options.target), options.passes.split(",")
    pattern = re.compile(options.filter)
    chosen = [entry for entry in zoo() if pattern.search(entry.name) or pattern.search(entry.family)]
    import_models()
    print("|".join(["", "name", "family", *(f"{step}|drift|from model" for step in steps), "reason", ""]))
    print("|".join(["", *("---" for _ in range(3 + 3 * len(steps))), ""]), flush=True)
    rows = []
    for entry in chosen:
        row, reason = isolated(functools.partial(examine, entry, target, steps))
        rows.append(row or Row(entry.name, entry.family, {step: Outcome([reason]) for step in steps}))
        print("|".join(["", *_cells(rows[-1]), ""]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    for step in steps:
        print(_summary(step, [row.outcomes[step] for row in rows]))


def examine(entry: Entry, target: Target, steps: list[str]) -> Row:
    """Capture a model in this process, and look at the file of each pipeline."""
    row = Row(entry.name, entry.family)
    try:
        model = entry.model()
        expected = eager(model, entry.inputs(_BATCH))
        captured = burnish.capture(model, entry.inputs(_BATCH))
    except burnish.BurnishError as error:
        row.outcomes = {step: Outcome([text_of(error)]) for step in steps}
        return row
    for step in steps:
        row.outcomes[step] = outcome = Outcome()
        try:
            _examine(outcome, step, captured, expected, target, entry)
        except (burnish.BurnishError, RuntimeError) as error:
            outcome.found.append(text_of(error))
    return row


def _examine(
    outcome: Outcome, step: str, captured: burnish.Program, expected: Any, target: Target, entry: Entry
) -> None:
    dialect = f"standard,opset={target.opset}" if target.opset else _DIALECTS.get(target.name, "tensorrt")
    backend, options = parse_backend(f"onnx{{dialect={dialect},graph_optimization=disabled}}")
    assert isinstance(backend, OnnxBackend)
    context = Context(target=backend.target(options), calibration=[entry.inputs(_BATCH)], progress=False)
    pipeline = Pipeline.parse(PIPELINES[step], backend.default_passes(options))
    program, _ = run_pipeline(pipeline, captured, context, verify=0)
    artifact = backend.emit(program, options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        artifact.save(file)
        graph = graph_of_file(str(file))
        ranges = sample_ranges(program, graph) if target.table is not None else {}
        outcome.found = [f"{each.operator}: {each.reason}" for each in target.findings(graph, ranges)]
        outcome.lint = complaints(file, {name: program.samples[name] for name in graph.main.inputs()})
    if any(is_random(node) for _, each in program.all_graphs() for node in calls(each)):
        outcome.failure = "not compared: it draws random numbers"
        return
    args, kwargs = program.sample_arguments()
    try:
        actual = artifact(*args, **kwargs)
    except burnish.BurnishError as error:
        outcome.failure = text_of(error)
        return
    outcome.from_model = _drift(program, actual, expected)
    of_program = outcome.from_model if step == "float32" else None
    outcome.drift = of_program if of_program is not None else _drift(program, actual, _run(program))


def _run(program: burnish.Program) -> Any:
    return interpreter.run(program, program.samples)[0]


def _drift(program: burnish.Program, actual: Any, expected: Any) -> float:
    found = structure.flatten(program.signature.outputs, actual, "the file's outputs")
    wanted: Mapping[str, Any] = structure.flatten(program.signature.outputs, expected, "the outputs")
    return worst_drift([comparable(found[name], wanted[name]) for name in wanted], list(wanted.values()))


def _cells(row: Row) -> list[str]:
    cells, reasons = [row.name, row.family], []
    for step, outcome in row.outcomes.items():
        counts = {"found": len(outcome.found), "lint": len(outcome.lint), "failed": int(bool(outcome.failure))}
        wrong = [f"{count} {name}" for name, count in counts.items() if count]
        if not wrong and not outcome.agrees(step):
            wrong.append("differs")
        cells += [", ".join(wrong) or "ok", *map(_number, (outcome.drift, outcome.from_model))]
        reasons += [*outcome.found, *outcome.lint, *([outcome.failure] if outcome.failure else [])]
    text = "; ".join(dict.fromkeys(reasons)).replace("|", "/")
    return [*cells, text if len(text) <= 300 else f"{text[:297]}..."]


def _number(drift: float | None) -> str:
    return "" if drift is None else f"{drift:.1e}"


def _summary(step: str, outcomes: list[Outcome]) -> str:
    passed = sum(not each.found for each in outcomes)
    lowered = [each for each in outcomes if each.drift is not None or each.failure]
    return (
        f"{step}: {passed} of {len(outcomes)} pass the check ({passed / max(len(outcomes), 1):.1%}); of {len(lowered)}"
        f" files {sum(not each.lint for each in lowered)} are clean in Polygraphy,"
        f" {sum(each.agrees(step) for each in lowered)} agree with eager PyTorch within {ALLOWED[step]:g}"
    )


if __name__ == "__main__":
    main()
