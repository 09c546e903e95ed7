"""burnish's fused programs against what others make of the same models, fp32, taking turns.

python -m benchmarks.fusion [--filter bert] [--batches 1,8] [--blocks 9] [--without torch.compile] [--json FILE]

Peers: the file of torch.onnx.export(dynamo=True) in ONNX Runtime as it is, after onnxsim, and (transformers) after
onnxruntime.transformers.optimizer; the same file in OpenVINO; torch.compile with freezing. A peer that fails is listed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

import burnish
from benchmarks.comparison import THREADS, against, eager, measure_batch, reason, run
from benchmarks.models.full_size import full_size
from benchmarks.sessions import Call, openvino_session, ort_session
from benchmarks.trained import efficientnet_lite0, minilm

CONTRIB = "com.microsoft"
# Ours against theirs: on the same runtime, and on whatever is fastest.
_GROUPS = {
    ("burnish ORT",): ("export + ORT", "+ onnxsim", "+ optimizer"),
    ("burnish ORT", "burnish OV"): ("OpenVINO", "torch.compile"),
}
_OPTIMIZER_TYPES = {"bert-base": "bert", "minilm-l6": "bert", "gpt-2": "gpt2", "vit-b/16": "vit", "swin-t": "swin"}


@dataclass
class Case:
    """One model at one batch size, with its candidates."""

    name: str
    model: torch.nn.Module
    inputs: Callable[[int], dict[str, torch.Tensor]]
    dynamic_shapes: Any = None
    failures: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, Counter[str]] = field(default_factory=dict)


def cases(wanted: str) -> Iterator[Case]:
    """Yield ten models with random weights and two trained ones, those whose name holds a word of `wanted`."""
    words = wanted.split(",")
    for entry in full_size():
        if any(word in entry.name for word in words):
            yield Case(entry.name, entry.model(), entry.inputs)  # type: ignore[arg-type]
    for make, name in ((efficientnet_lite0, "efficientnet-lite0"), (minilm, "minilm-l6")):
        if not any(word in name for word in words):
            continue
        trained = make()
        data = trained.data if isinstance(trained.data, dict) else dict(zip(("inputs",), trained.data, strict=True))
        yield Case(trained.name.lower(), trained.model, _head_of(data), trained.dynamic_shapes)


def _head_of(data: dict[str, torch.Tensor]) -> Callable[[int], dict[str, torch.Tensor]]:
    return lambda batch: {name: value[:batch] for name, value in data.items()}


def candidates(case: Case, folder: Path, without: set[str]) -> dict[str, Call]:
    """Build what serves any batch size once: functions of the inputs."""
    example = case.inputs(2)
    found: dict[str, Call] = {"eager": eager(case.model)}
    found |= file_peers(case, export_file(case, folder), example, without)
    # torch.compile compiles for every batch size anew, and fails then if at all.
    _add(case, found, "torch.compile", lambda: _inductor(case.model), None, without)
    _add(case, found, "burnish ORT", lambda: _burnish(case, example, "onnxruntime"), example, without)
    _add(case, found, "burnish OV", lambda: _burnish(case, example, "openvino"), example, without)
    return found


def export_file(case: Case, folder: Path) -> Path:
    """Write the file of torch's own exporter, and return its path."""
    try:
        return _export(case, folder)
    except Exception as error:
        # torch cannot export Swin with fused attention; its peers get the spelled-out kind.
        case.failures["torch.onnx.export of the model as it is"] = reason(error)
        with _spelled_out_attention(case.model):
            return _export(case, folder)


def file_peers(case: Case, export: Path, example: dict[str, torch.Tensor], without: set[str]) -> dict[str, Call]:
    """Build what runs the file of torch's own exporter."""
    found: dict[str, Call] = {}

    def add(name: str, make: Callable[[], Call]) -> None:
        _add(case, found, name, make, example, without)

    add("export + ORT", lambda: _session(export, case, "export + ORT"))
    add("+ onnxsim", lambda: _session(_simplified(export), case, "+ onnxsim"))
    if case.name in _OPTIMIZER_TYPES:
        add("+ optimizer", lambda: _session(_optimized(export, _OPTIMIZER_TYPES[case.name]), case, "+ optimizer"))
    add("OpenVINO", lambda: openvino_session(export, THREADS))
    return found


def _add(
    case: Case,
    found: dict[str, Call],
    name: str,
    make: Callable[[], Call],
    example: dict[str, torch.Tensor] | None,
    without: set[str],
) -> None:
    """Build a candidate and call it once; one that fails is listed instead."""
    if name in without:
        return
    try:
        call = make()
        if example is not None:
            call(example)
        found[name] = call
    except Exception as error:
        case.failures[name] = reason(error)


def _export(case: Case, folder: Path) -> Path:
    example = case.inputs(2)
    dynamic = case.dynamic_shapes or {name: {0: torch.export.Dim.AUTO} for name in example}
    path = folder / "export.onnx"
    torch.onnx.export(
        case.model, kwargs=example, f=path, dynamo=True, dynamic_shapes=dynamic, verbose=False, external_data=False
    )
    return path


@contextlib.contextmanager
def _spelled_out_attention(model: torch.nn.Module) -> Iterator[None]:
    inner: Any = model.model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def _simplified(path: Path) -> Path:
    import onnxsim

    target = path.with_name("simplified.onnx")
    onnx.save(onnxsim.simplify(onnx.load(path))[0], target)
    return target


def _optimized(path: Path, kind: str) -> Path:
    from onnxruntime.transformers import optimizer

    target = path.with_name("optimized.onnx")
    optimizer.optimize_model(str(path), model_type=kind, num_heads=0, hidden_size=0).save_model_to_file(str(target))
    return target


def _session(path: Path, case: Case, name: str) -> Call:
    call = ort_session(path, THREADS)
    case.kernels[name] = _kernels(onnx.load(path.with_suffix(".loaded"), load_external_data=False))
    return call


def _kernels(model: onnx.ModelProto) -> Counter[str]:
    return Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in model.graph.node)


def _inductor(model: torch.nn.Module) -> Call:
    import torch._inductor.config as settings

    settings.freezing = True  # type: ignore[attr-defined]
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False)
    return eager(compiled)  # type: ignore[arg-type]


def _burnish(case: Case, example: dict[str, torch.Tensor], runtime: str) -> Call:
    compiled = burnish.compile(
        case.model,
        inputs=example,
        dynamic_shapes=case.dynamic_shapes,
        backend=f"onnx{{runtime={runtime},threads={THREADS}}}",
    )
    if runtime == "onnxruntime":
        with tempfile.TemporaryDirectory() as folder:
            compiled.save(Path(folder) / "burnish.onnx")
            _session(Path(folder) / "burnish.onnx", case, "burnish ORT")
    return lambda inputs: compiled(**inputs)


def measure(wanted: str, batches: list[int], blocks: int, without: set[str]) -> list[dict[str, Any]]:
    """Return a row for every model and batch size."""
    return [row for case in cases(wanted) for row in _measure(case, batches, blocks, without)]


def _measure(case: Case, batches: list[int], blocks: int, without: set[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        known = candidates(case, Path(folder), without)
        rows = [measure_batch(case.name, known, case.inputs(batch), blocks, _GROUPS) for batch in batches]
    for name, why in case.failures.items():
        print(f"    {name} failed: {why}")
    show_kernels(case)
    for row in rows:
        row["kernels"] = {name: sum(counts.values()) for name, counts in case.kernels.items()}
    return rows


def show_kernels(case: Case) -> None:
    """Print how many kernels ONNX Runtime runs, and which of its own operators are among them."""
    for name in ("export + ORT", "burnish ORT"):
        counts = case.kernels.get(name, Counter())
        own = [f"{key.partition(':')[2]} {n}" for key, n in sorted(counts.items()) if key.startswith(f"{CONTRIB}:")]
        print(f"    kernels, {name}: {sum(counts.values())}; ONNX Runtime's own: {', '.join(own) or 'none'}")


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: time as a ratio to the best peer of each group, in the same run."""
    lines = [
        "| model | batch | kernels, export | kernels, burnish | best of ONNX Runtime | best of the others | drift |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kernels = [str(row["kernels"].get(name, "-")) for name in ("export + ORT", "burnish ORT")]
        compared = [against(row, peers) for peers in _GROUPS.values()]
        worst = max(row["drift"][name] for name in ("burnish ORT", "burnish OV") if name in row["drift"])
        lines.append(f"| {row['model']} | {row['batch']} | {' | '.join([*kernels, *compared])} | {worst:.0e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, measure, summary)
