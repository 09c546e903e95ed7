"""burnish's int8 programs against what others make of the same models, taking turns.

python -m benchmarks.quantization [--filter bert] [--batches 1,8] [--blocks 9] [--without ...] [--json FILE]

Peers: onnxruntime.quantization, static QDQ and dynamic, in ONNX Runtime; NNCF in OpenVINO. Everyone has the same
calibration data. What is not quantized runs in float32. A peer that fails is listed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import burnish
from benchmarks import int8_peers as peers
from benchmarks.comparison import THREADS, against, eager, fastest, measure_batch, reason, run
from benchmarks.fusion import Case, cases, export_file
from benchmarks.sessions import Call, openvino_session, ort_session
from benchmarks.timing import Interleaved, ratio
from burnish.backends.onnx import OnnxArtifact

_SAMPLES = 16
_OURS = ("static, ORT", "dynamic, ORT", "static, OV")
# Ours against theirs: on the same runtime, and on whatever is fastest.
_GROUPS = {
    _OURS[:2]: ("ORT static", "ORT dynamic"),
    _OURS: ("NNCF + OV",),
}
_CONVOLUTIONAL = ("resnet", "mobilenet", "efficientnet")


def candidates(case: Case, folder: Path, without: set[str], shares: list[float]) -> dict[str, Call]:
    """Build what serves any batch size once: functions of the inputs.

    Args:
        case: the model.
        folder: for files.
        without: names of candidates to leave out.
        shares: gets the part of the multiply-adds that our static program does in integer kernels.
    """
    example = case.inputs(2)
    every = case.inputs(_SAMPLES)
    data = [{name: value[at : at + 2] for name, value in every.items()} for at in range(0, _SAMPLES, 2)]
    convolutional = any(each in case.name for each in _CONVOLUTIONAL)
    export = export_file(case, folder)
    makers: dict[str, Callable[[], Call]] = {
        "fp32, ORT": lambda: _burnish(case, example, "default", "onnxruntime", data),
        "ORT static": lambda: ort_session(peers.ort_static(export, data, convolutional), THREADS),
        "ORT dynamic": lambda: ort_session(peers.ort_dynamic(export), THREADS),
        "NNCF + OV": lambda: _nncf(case, example, export, data, convolutional),
        "static, ORT": lambda: _burnish(case, example, "default,quantize", "onnxruntime", data, shares),
        "dynamic, ORT": lambda: _burnish(case, example, "default,quantize-dynamic", "onnxruntime", data),
        "static, OV": lambda: _burnish(case, example, "default,quantize", "openvino", data),
    }
    if convolutional:
        del makers["ORT dynamic"], makers["dynamic, ORT"]
    found: dict[str, Call] = {"eager": eager(case.model)}
    for name, make in makers.items():
        if name in without:
            continue
        try:
            call = make()
            call(example)
            found[name] = call
        except Exception as error:
            case.failures[name] = reason(error)
    return found


def _nncf(case: Case, example: dict[str, torch.Tensor], export: Path, data: peers.Feeds, convolutional: bool) -> Call:
    try:
        return openvino_session(peers.nncf_openvino(export, data, convolutional), THREADS)
    except RuntimeError as error:
        print(f"    NNCF gets burnish's float file: {reason(error)}")
    path = export.with_name("float.onnx")
    burnish.compile(
        case.model, inputs=example, dynamic_shapes=case.dynamic_shapes, backend="onnx{dialect=standard}"
    ).save(path)
    return openvino_session(peers.nncf_openvino(path, data, convolutional), THREADS)


def _burnish(
    case: Case,
    example: dict[str, torch.Tensor],
    passes: str,
    runtime: str,
    data: Sequence[dict[str, torch.Tensor]],
    shares: list[float] | None = None,
) -> Call:
    compiled = burnish.compile(
        case.model,
        passes,
        inputs=example,
        dynamic_shapes=case.dynamic_shapes,
        backend=f"onnx{{runtime={runtime},threads={THREADS}}}",
        calibration=data,
    )
    if shares is not None:
        assert isinstance(compiled.artifact, OnnxArtifact)
        shares.append(compiled.artifact.integer_kernels().share)
    return lambda inputs: compiled(**inputs)


def measure(wanted: str, batches: list[int], blocks: int, without: set[str]) -> list[dict[str, Any]]:
    """Return a row for every model and batch size."""
    rows = []
    for case in cases(wanted):
        with tempfile.TemporaryDirectory() as folder:
            shares: list[float] = []
            known = candidates(case, Path(folder), without, shares)
            for batch in batches:
                rows.append(measure_batch(case.name, known, case.inputs(batch), blocks, _GROUPS) | {"shares": shares})
        for name, why in case.failures.items():
            print(f"    {name} failed: {why}")
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: time as a ratio to eager fp32 and to the best peer of each group, in the same run."""
    lines = [
        "| model | batch | integer MACs | time / eager fp32 | ORT / its fp32 | best of ONNX Runtime's own |"
        " NNCF + OpenVINO | drift |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times: dict[str, Interleaved] = row["times"]
        best = fastest(times, _OURS)
        own = f"{times[best].ratio:.3f} +- {times[best].spread:.3f} ({best})" if best else "none ran"
        drift = f"{row['drift'][best]:.0e}" if best else "-"
        compared = [against(row, peers) for peers in _GROUPS.values()]
        shares = ", ".join(f"{each:.1%}" for each in row["shares"])
        cells = (row["model"], row["batch"], shares, own, _gain(times), *compared, drift)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _gain(times: dict[str, Interleaved]) -> str:
    """Return our int8 time in ONNX Runtime as a ratio to our float32 time there."""
    best = fastest(times, _OURS[:2])
    if best is None or "fp32, ORT" not in times:
        return "-"
    middle, spread = ratio(times[best].blocks, times["fp32, ORT"].blocks)
    return f"{middle:.2f} +- {spread:.2f}"


if __name__ == "__main__":
    run(__doc__, measure, summary)
