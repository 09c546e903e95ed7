"""burnish's fused programs against what others make of the same models, fp32, taking turns.

python -m benchmarks.fusion [--filter bert] [--batches 1,8] [--blocks 9] [--without torch.compile] [--json FILE]

Peers: the file of torch.onnx.export(dynamo=True) in ONNX Runtime as it is, after onnxsim, and (transformers) after
onnxruntime.transformers.optimizer; the same file in OpenVINO; torch.compile with freezing. A peer that fails is listed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import burnish
from benchmarks.models.full_size import full_size
from benchmarks.sessions import Call, openvino_session, ort_session
from benchmarks.timing import Interleaved, interleave, ratio
from benchmarks.trained import efficientnet_lite0, minilm
from burnish.compiler.numerics import worst_drift

THREADS = 2
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


def cases() -> Iterator[Case]:
    """Yield the models of the issue: ten with random weights, two trained."""
    for entry in full_size():
        yield Case(entry.name, entry.model(), entry.inputs)  # type: ignore[arg-type]
    for trained in (efficientnet_lite0(), minilm()):
        data = trained.data if isinstance(trained.data, dict) else dict(zip(("inputs",), trained.data, strict=True))
        yield Case(trained.name.lower(), trained.model, _head_of(data), trained.dynamic_shapes)


def _head_of(data: dict[str, torch.Tensor]) -> Callable[[int], dict[str, torch.Tensor]]:
    return lambda batch: {name: value[:batch] for name, value in data.items()}


def candidates(case: Case, folder: Path, without: set[str]) -> dict[str, Call]:
    """Build what serves any batch size once: functions of the inputs."""
    example = case.inputs(2)
    found: dict[str, Call] = {"eager": _eager(case.model)}
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
        case.failures["torch.onnx.export of the model as it is"] = _reason(error)
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
        case.failures[name] = _reason(error)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


def _eager(model: torch.nn.Module) -> Call:
    def call(inputs: dict[str, torch.Tensor]) -> Any:
        with torch.no_grad():
            return model(**inputs)

    return call


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
    return _eager(compiled)  # type: ignore[arg-type]


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


def _drift(actual: Any, expected: Any) -> float:
    leaves = torch.utils._pytree.tree_leaves
    found = [
        torch.from_numpy(np.asarray(each)) if not isinstance(each, torch.Tensor) else each for each in leaves(actual)
    ]
    return worst_drift(found[:1], leaves(expected)[:1])


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
            times = interleave(calls, blocks=blocks)
            rows.append({"model": case.name, "batch": batch, "drift": drift, "times": times, "against": {}})
            show(rows[-1])
    for name, why in case.failures.items():
        print(f"    {name} failed: {why}")
    show_kernels(case)
    for row in rows:
        row["kernels"] = {name: sum(counts.values()) for name, counts in case.kernels.items()}
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row: time as a ratio to eager, and burnish against the best of each group of peers."""
    times: dict[str, Interleaved] = row["times"]
    print(f"{row['model']}, batch {row['batch']}: eager {times['eager'].median * 1e3:.1f} ms")
    for name, found in list(times.items())[1:]:
        drift = f"drift {row['drift'][name]:.0e}"
        print(f"    {name:14}{found.median * 1e3:9.2f} ms  {found.ratio:5.3f} +- {found.spread:.3f}   {drift}")
    for ours, peers in _GROUPS.items():
        best, peer = (
            min((n for n in names if n in times), key=lambda n: times[n].median, default=None)
            for names in (ours, peers)
        )
        if best is not None and peer is not None:
            row["against"][peer] = (best, *ratio(times[best].blocks, times[peer].blocks))
            middle, spread = row["against"][peer][1:]
            verdict = (
                "faster" if middle + spread < 1 else "equal within the spread" if middle - spread <= 1 else "SLOWER"
            )
            print(f"    {best} / {peer}: {middle:.3f} +- {spread:.3f}  {verdict}")


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
        against = []
        for peers in _GROUPS.values():
            found = next(((peer, each) for peer, each in row["against"].items() if peer in peers), None)
            if found is None:
                against.append("none ran")
            else:
                peer, (best, middle, spread) = found
                against.append(f"{middle:.3f} +- {spread:.3f} ({best} / {peer})")
        worst = max(row["drift"][name] for name in ("burnish ORT", "burnish OV") if name in row["drift"])
        lines.append(f"| {row['model']} | {row['batch']} | {' | '.join([*kernels, *against])} | {worst:.0e} |")
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
