"""burnish's int8 programs against what others make of the same models, taking turns.

python -m benchmarks.quantization [--filter bert] [--batches 1,8] [--blocks 9] [--without ...] [--json FILE]

Peers: onnxruntime.quantization, static QDQ and dynamic, in ONNX Runtime; NNCF in OpenVINO. Everyone has the same
calibration data. What is not quantized runs in float32. A peer that fails is listed.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import burnish
from benchmarks import int8_peers as peers
from benchmarks.fusion import Case, cases, export_file
from benchmarks.sessions import Call, openvino_session, ort_session
from benchmarks.timing import Interleaved, interleave, ratio
from burnish.compiler.numerics import worst_drift

THREADS = 2
_SAMPLES = 16
# Ours against theirs: on the same runtime, and on whatever is fastest.
_GROUPS = {
    ("static, ORT", "dynamic, ORT"): ("ORT static", "ORT dynamic"),
    ("static, ORT", "dynamic, ORT", "static, OV"): ("NNCF + OV",),
}
_CONVOLUTIONAL = ("resnet", "mobilenet", "efficientnet")


def candidates(case: Case, folder: Path, without: set[str]) -> dict[str, Call]:
    """Build what serves any batch size once: functions of the inputs."""
    example = case.inputs(2)
    every = case.inputs(_SAMPLES)
    data = [{name: value[at : at + 2] for name, value in every.items()} for at in range(0, _SAMPLES, 2)]
    convolutional = any(each in case.name for each in _CONVOLUTIONAL)
    export = export_file(case, folder)
    makers: dict[str, Callable[[], Call]] = {
        "fp32, ORT": lambda: _burnish(case, example, "default", "onnxruntime", data),
        "ORT static": lambda: ort_session(peers.ort_static(export, data, convolutional), THREADS),
        "ORT dynamic": lambda: ort_session(peers.ort_dynamic(export), THREADS),
        "NNCF + OV": lambda: openvino_session(peers.nncf_openvino(export, data, convolutional), THREADS),
        "static, ORT": lambda: _burnish(case, example, "default,quantize", "onnxruntime", data),
        "dynamic, ORT": lambda: _burnish(case, example, "default,quantize-dynamic", "onnxruntime", data),
        "static, OV": lambda: _burnish(case, example, "default,quantize", "openvino", data),
    }
    if convolutional:
        del makers["ORT dynamic"], makers["dynamic, ORT"]
    found: dict[str, Call] = {"eager": functools.partial(_eager, case.model)}
    for name, make in makers.items():
        if name in without:
            continue
        try:
            call = make()
            call(example)
            found[name] = call
        except Exception as error:
            case.failures[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
    return found


def _eager(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return model(**inputs)


def _burnish(
    case: Case, example: dict[str, torch.Tensor], passes: str, runtime: str, data: Sequence[dict[str, torch.Tensor]]
) -> Call:
    compiled = burnish.compile(
        case.model,
        passes,
        inputs=example,
        dynamic_shapes=case.dynamic_shapes,
        backend=f"onnx{{runtime={runtime},threads={THREADS}}}",
        calibration=data,
    )
    return lambda inputs: compiled(**inputs)


def measure(case: Case, batches: list[int], blocks: int, without: set[str]) -> list[dict[str, Any]]:
    """Return a row for every batch size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        known = candidates(case, Path(folder), without)
        for batch in batches:
            inputs = case.inputs(batch)
            expected = known["eager"](inputs)
            drift = {name: _drift(call(inputs), expected) for name, call in known.items()}
            calls = {name: functools.partial(call, inputs) for name, call in known.items()}
            rows.append({"model": case.name, "batch": batch, "drift": drift, "times": interleave(calls, blocks=blocks)})
            show(rows[-1])
    for name, why in case.failures.items():
        print(f"    {name} failed: {why}")
    return rows


def _drift(actual: Any, expected: Any) -> float:
    leaves = torch.utils._pytree.tree_leaves
    found = [torch.as_tensor(each) for each in leaves(actual)]
    return worst_drift(found[:1], leaves(expected)[:1])


def show(row: dict[str, Any]) -> None:
    """Print one row: time as a ratio to eager fp32, and burnish against the best of each group of peers."""
    times: dict[str, Interleaved] = row["times"]
    print(f"{row['model']}, batch {row['batch']}: eager {times['eager'].median * 1e3:.1f} ms")
    for name, found in list(times.items())[1:]:
        drift = f"drift {row['drift'][name]:.0e}"
        print(
            f"    {name:14}{found.median * 1e3:9.2f} ms  {found.ratio:5.3f} +- {found.spread:.3f}   {drift}", flush=True
        )
    row["against"] = {}
    for ours, theirs in _GROUPS.items():
        best, peer = (
            min((n for n in names if n in times), key=lambda n: times[n].median, default=None)
            for names in (ours, theirs)
        )
        if best is not None and peer is not None:
            middle, spread = ratio(times[best].blocks, times[peer].blocks)
            row["against"][peer] = (best, middle, spread)
            print(f"    {best} / {peer}: {middle:.3f} +- {spread:.3f}")


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: time as a ratio to eager fp32 and to the best peer of each group, in the same run."""
    lines = [
        "| model | batch | time / eager fp32 | best of ONNX Runtime's own | NNCF + OpenVINO | drift |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times: dict[str, Interleaved] = row["times"]
        ours = next(iter(_GROUPS.keys() - {next(iter(_GROUPS))}))
        best = min((name for name in ours if name in times), key=lambda name: times[name].median, default=None)
        against = []
        for theirs in _GROUPS.values():
            found = next(((peer, each) for peer, each in row["against"].items() if peer in theirs), None)
            against.append(
                f"{found[1][1]:.3f} +- {found[1][2]:.3f} ({found[1][0]} / {found[0]})" if found else "none ran"
            )
        own = f"{times[best].ratio:.3f} +- {times[best].spread:.3f} ({best})" if best else "none ran"
        drift = f"{row['drift'][best]:.0e}" if best else "-"
        lines.append(f"| {row['model']} | {row['batch']} | {own} | {' | '.join(against)} | {drift} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only models whose name contains one of these, comma-separated")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--without", default="", help="candidates to leave out, comma-separated")
    parser.add_argument("--json", default="", help="write the figures here")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for case in cases():
        if any(each in case.name for each in chosen.filter.split(",")):
            without = {each for each in chosen.without.split(",") if each}
            rows += measure(case, [int(each) for each in chosen.batches.split(",")], chosen.blocks, without)
    print(summary(rows))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(rows, default=lambda value: value.__dict__, indent=1))


if __name__ == "__main__":
    main()
