"""What zeros for weights gain on a runtime: time against the dense network, taking turns, and the file, compressed.

python -m benchmarks.sparsity [--filter bert] [--batches 1,8] [--blocks 9] [--without "OV int8"] [--json FILE]

The same network dense, with one half and nine tenths of its weights zero, and with 2 of every 4 kept, in float32 and in
int8, in ONNX Runtime and OpenVINO as they come. Weights are random: right for speed, never for accuracy.
"""

from __future__ import annotations

import functools
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import burnish
from benchmarks.comparison import THREADS, run
from benchmarks.fusion import Case, cases
from benchmarks.sessions import Call
from benchmarks.timing import interleave

_MODELS = "resnet-50,bert-base"
_SAMPLES = 16
_TARGETS = {
    "ORT f32": ("onnxruntime", ""),
    "ORT int8": ("onnxruntime", ",quantize"),
    "OV f32": ("openvino", ""),
    "OV int8": ("openvino", ",quantize"),
}
_ZEROS = {
    "dense": "",
    "50%": ",sparsify,fold-constants",
    "90%": ",sparsify{ratio=0.9},fold-constants",
    "2:4": ',sparsify{pattern="2:4"},fold-constants',
}


@dataclass(frozen=True)
class Built:
    """A network on a runtime.

    Attributes:
        call: a function of the inputs by name.
        zeros: the part of the elements of its weights that is zero.
        size: bytes of its file.
        compressed: bytes of its file behind zlib, level 6.
    """

    call: Call
    zeros: float
    size: int
    compressed: int


def build(case: Case, target: str, zeros: str) -> Built:
    """Compile a network for a target, with zeros by name."""
    runtime, quantize = _TARGETS[target]
    every = case.inputs(_SAMPLES)
    compiled = burnish.compile(
        case.model,
        f"default{_ZEROS[zeros]}{quantize}",
        inputs=case.inputs(2),
        backend=f"onnx{{runtime={runtime},threads={THREADS}}}",
        calibration=[{name: value[at : at + 2] for name, value in every.items()} for at in range(0, _SAMPLES, 2)],
    )
    weights = [value for value in compiled.program.used_constants().values() if value.dim() > 1]
    count = sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        compiled.save(path)
        size, compressed = path.stat().st_size, _compressed(path)
    return Built(lambda inputs: compiled(**inputs), count, size, compressed)


def _compressed(path: Path) -> int:
    packer, total = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            total += len(packer.compress(part))
    return total + len(packer.flush())


def measure(wanted: str, batches: list[int], blocks: int, without: set[str]) -> list[dict[str, Any]]:
    """Return a row for every model, target and batch size."""
    rows = []
    for case in cases(wanted or _MODELS):
        for target in _TARGETS:
            if target not in without:
                rows += _measure(case, target, batches, blocks)
    return rows


def _measure(case: Case, target: str, batches: list[int], blocks: int) -> list[dict[str, Any]]:
    built = {zeros: build(case, target, zeros) for zeros in _ZEROS}
    files = {zeros: (each.zeros, each.size, each.compressed) for zeros, each in built.items()}
    rows: list[dict[str, Any]] = []
    for batch in batches:
        inputs: dict[str, torch.Tensor] = case.inputs(batch)
        times = interleave(
            {zeros: functools.partial(each.call, inputs) for zeros, each in built.items()}, blocks=blocks
        )
        rows.append({"model": case.name, "target": target, "batch": batch, "times": times, "files": files})
        print(f"{case.name}, {target}, batch {batch}: dense {times['dense'].median * 1e3:.2f} ms")
        for zeros, found in times.items():
            part, size, compressed = files[zeros]
            sizes = f"{size / 1e6:.1f} MB, {compressed / 1e6:.1f} MB compressed"
            print(f"    {zeros:6}{part:6.1%} zeros  {found.ratio:5.3f} +- {found.spread:.3f}  {sizes}", flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return two tables in Markdown: time as a ratio to the dense network's, and files."""
    sparse = list(_ZEROS)[1:]
    lines = [f"| model | batch | target | dense, ms | {' | '.join(sparse)} |", "|---" * (4 + len(sparse)) + "|"]
    for row in rows:
        times = row["times"]
        ratios = [f"{times[zeros].ratio:.2f} +- {times[zeros].spread:.2f}" for zeros in sparse]
        cells = (row["model"], row["batch"], row["target"], f"{times['dense'].median * 1e3:.1f}", *ratios)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", f"| model | target | MB | MB compressed: {' | '.join(_ZEROS)} |", "|---" * (3 + len(_ZEROS)) + "|"]
    for (model, target), files in {(row["model"], row["target"]): row["files"] for row in rows}.items():
        packed = [f"{compressed / 1e6:.1f}" for _, _, compressed in files.values()]
        lines.append("| " + " | ".join([model, target, f"{files['dense'][1] / 1e6:.1f}", *packed]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, measure, summary)
