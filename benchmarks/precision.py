"""What half precision costs and gains: drift on trained models, and bf16 beside OpenVINO's and inductor's own.

python -m benchmarks.precision [--filter bert] [--batches 1,8] [--blocks 9] [--without ...] [--json FILE]
python -m benchmarks.precision --only drift

Candidates of burnish: the pass in TorchScript and in OpenVINO, and the float Program in OpenVINO with its hint bf16.
Peers: the file of torch's exporter in OpenVINO with that hint; torch.compile with freezing of the model in bfloat16.
Everyone takes turns in one run; a peer that fails is listed.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

import burnish
from benchmarks.comparison import THREADS, against, eager, fastest, measure_batch, reason, run
from benchmarks.fusion import Case, cases, export_file
from benchmarks.sessions import Call, openvino_session
from benchmarks.timing import Interleaved
from benchmarks.trained import MODELS, NotInstalled, call
from burnish.compiler.numerics import worst_drift

_OURS = ("pass, OV", "pass, TS", "hint, OV")
_GROUPS = {_OURS: ("OpenVINO bf16", "inductor bf16")}
_PASSES = (
    "precision",
    "precision{max_drift=1e-2}",
    "precision{dtype=bf16}",
    "precision{dtype=bf16,max_drift=1e-2}",
)


def candidates(case: Case, folder: Path, without: set[str]) -> dict[str, Call]:
    """Build what serves any batch size once: functions of the inputs."""
    example = case.inputs(2)
    bf16 = "default,precision{dtype=bf16}"
    hint = ',session_options=["INFERENCE_PRECISION_HINT=bf16"]'
    makers: dict[str, Callable[[], Call]] = {
        "OpenVINO bf16": lambda: openvino_session(export_file(case, folder), THREADS, precision="bf16"),
        "inductor bf16": lambda: _inductor(case.model),
        "pass, OV": lambda: _burnish(case, example, bf16, f"onnx{{runtime=openvino,threads={THREADS}}}"),
        "pass, TS": lambda: _burnish(case, example, bf16, "torchscript"),
        "hint, OV": lambda: _burnish(case, example, "default", f"onnx{{runtime=openvino,threads={THREADS}{hint}}}"),
    }
    found: dict[str, Call] = {"eager": eager(case.model)}
    for name, make in makers.items():
        if name in without:
            continue
        try:
            made = make()
            if name != "inductor bf16":
                # That one compiles for every batch size anew, and fails then if at all.
                made(example)
            found[name] = made
        except Exception as error:
            case.failures[name] = reason(error)
    return found


def _burnish(case: Case, example: dict[str, torch.Tensor], passes: str, backend: str) -> Call:
    # Rounding moves the results of a model in bf16 by more than float32 may differ: drift is in the table.
    compiled = burnish.compile(
        case.model, passes, inputs=example, dynamic_shapes=case.dynamic_shapes, backend=backend, verify=0
    )
    return lambda inputs: compiled(**inputs)


def _inductor(model: torch.nn.Module) -> Call:
    import torch._inductor.config as config

    config.freezing = True
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model).to(torch.bfloat16))

    def run_it(inputs: dict[str, torch.Tensor]) -> Any:
        given = {name: _to(value, torch.float32, torch.bfloat16) for name, value in inputs.items()}
        with torch.no_grad():
            return tree_map(lambda value: _to(value, torch.bfloat16, torch.float32), compiled(**given))

    return run_it


def _to(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return value.to(target) if isinstance(value, torch.Tensor) and value.dtype is source else value


def measure(wanted: str, batches: list[int], blocks: int, without: set[str]) -> list[dict[str, Any]]:
    """Return a row for every model and batch size."""
    rows = []
    for case in cases(wanted):
        with tempfile.TemporaryDirectory() as folder:
            known = candidates(case, Path(folder), without)
            rows += [measure_batch(case.name, known, case.inputs(batch), blocks, _GROUPS) for batch in batches]
        for name, why in case.failures.items():
            print(f"    {name} failed: {why}")
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: time as a ratio to eager fp32 and to the best peer, in the same run."""
    lines = [
        "| model | batch | time / eager fp32 | best peer | drift, ours | drift, peers |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times: dict[str, Interleaved] = row["times"]
        best = fastest(times, _OURS)
        own = f"{times[best].ratio:.3f} +- {times[best].spread:.3f} ({best})" if best else "none ran"
        drifts = [
            ", ".join(f"{row['drift'][name]:.0e} ({name})" for name in names if name in times)
            for names in (_OURS, *_GROUPS.values())
        ]
        cells = (row["model"], row["batch"], own, against(row, _GROUPS[_OURS]), *drifts)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def drifts() -> str:
    """Return a table in Markdown: drift of Programs in half precision on real inputs, and layers in float32."""
    lines = ["| model | " + " | ".join(_PASSES) + " |", "|---" * (len(_PASSES) + 1) + "|"]
    for name, make in MODELS.items():
        try:
            trained = make()
        except NotInstalled as missing:
            print(f"{name} is left out: {missing}")
            continue
        program = burnish.capture(trained.model, trained.inputs, trained.dynamic_shapes)
        expected = tree_leaves(call(trained.model, trained.inputs))
        cells = []
        for passes in _PASSES:
            context = burnish.Context(progress=False)
            pipeline = f"canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce,{passes}"
            found = burnish.Pipeline.parse(pipeline).run(program, context)
            cells.append(f"{worst_drift(tree_leaves(call(found, trained.inputs)), expected):.1e}")
            print(name, passes, cells[-1], *context.notes, sep="\n    ", flush=True)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--only", "drift"]:
        print(drifts())
    else:
        run(__doc__, measure, summary)
