"""onnxsim behind a guard: its result counts only where it provably did no harm.

It runs in a process of its own, since its native code has been seen to crash, and without the large weights (inputs
stand in for them), so that the size of a model does not matter. Its result is dropped, and a note says so, when it
crashes, takes longer than `TIMEOUT`, changes the number of QuantizeLinear or DequantizeLinear nodes, inputs or
outputs, breaks a rule of ONNX, or changes an output on the sample inputs by more than `TOLERANCE`.

"auto" means no: measured on ResNet-50 and BERT-base, ONNX Runtime runs both graphs equally fast
(docs/backends/onnx.md).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx

from burnish.backends.onnx.emit import MODULE, NODE
from burnish.backends.onnx.model import Model
from burnish.backends.onnx.session import Session
from burnish.backends.onnx.settings import Settings
from burnish.compiler.errors import BurnishError
from burnish.compiler.numerics import worst_drift
from burnish.compiler.program import Program

__all__ = ["TIMEOUT", "TOLERANCE", "simplified"]

TIMEOUT = 300.0
"""Seconds."""
TOLERANCE = 1e-5
"""Relative difference, as `numerics.drift` measures it."""

_SCRIPT = """
import sys, onnx, onnxsim
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0, skip_fuse_bn=True, certify=False)
onnx.save(model, sys.argv[2])
"""


def simplified(model: Model, program: Program, settings: Settings, notes: list[str]) -> Model:
    """Return the simplified model, or `model` with a reason in `notes`."""
    if settings.simplify is not True:
        return model
    try:
        result = _run(model)
        reason = _objection(model, result, program, settings)
    except (_NoModelError, BurnishError, onnx.checker.ValidationError) as error:
        reason = str(error)
    if reason:
        notes.append(f"the result of onnxsim was dropped: {reason}")
        return model
    before, after = len(model.graph.graph.node), len(result.graph.graph.node)
    notes.append(f"onnxsim: {before} nodes became {after}")
    return result


class _NoModelError(Exception):
    """onnxsim gave no usable model."""


def _run(model: Model) -> Model:
    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(model.graph)
    large = [each for each in stand_in.graph.initializer if each.name in model.weights]
    small = [each for each in stand_in.graph.initializer if each.name not in model.weights]
    for each in large:
        stand_in.graph.input.append(onnx.helper.make_tensor_value_info(each.name, each.data_type, list(each.dims)))
    del stand_in.graph.initializer[:]
    stand_in.graph.initializer.extend(small)
    result = _simplify(stand_in)
    inputs = [each for each in result.graph.input if each.name not in model.weights]
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    # A weight that nothing reads any more goes.
    used = {name for node in result.graph.node for name in _reads(node)} | {each.name for each in result.graph.output}
    result.graph.initializer.extend(each for each in large if each.name in used)
    _restore_metadata(result, model)
    return replace(model, graph=result, weights={name: each for name, each in model.weights.items() if name in used})


def _simplify(graph: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        source.write_bytes(graph.SerializeToString())
        command = [sys.executable, "-c", _SCRIPT, str(source), str(result)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise _NoModelError(f"it took longer than {TIMEOUT:g} seconds") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise _NoModelError(f"it failed with status {done.returncode}{': ' + lines[-1] if lines else ''}")
        return onnx.load(str(result))


def _restore_metadata(result: onnx.ModelProto, model: Model) -> None:
    """Give nodes that onnxsim made without metadata those of the node whose value they now produce or read."""
    known = {node.name: node for node in model.graph.graph.node}
    made = {value: node for node in model.graph.graph.node for value in node.output}
    for node in result.graph.node:
        if any(entry.key == MODULE for entry in node.metadata_props):
            continue
        origin = known.get(node.name) or next(
            (made[value] for value in (*node.output, *node.input) if value in made), None
        )
        if origin is not None:
            node.metadata_props.extend(entry for entry in origin.metadata_props if entry.key in (MODULE, NODE))


def _objection(before: Model, after: Model, program: Program, settings: Settings) -> str:
    """Say what is wrong with `after`, "" when nothing is."""
    quantized, kept = _quantization(before.graph.graph), _quantization(after.graph.graph)
    if quantized != kept:
        return f"it changed the number of QuantizeLinear and DequantizeLinear nodes from {quantized} to {kept}"
    for kind in ("input", "output"):
        names = [[each.name for each in getattr(model.graph.graph, kind)] for model in (before, after)]
        if names[0] != names[1]:
            return f"it changed the graph's {kind}s"
    after.check()
    if not program.samples:
        return "there are no sample inputs to compare it on"
    feeds = {**program.samples, **{ends[0]: before.initial[name] for name, ends in before.convention.state.items()}}
    expected, actual = (Session(model, settings).run(feeds) for model in (before, after))
    worst = worst_drift(actual.values(), expected.values())
    return f"it changed an output by {worst:.3g} relative" if worst > TOLERANCE else ""


def _quantization(graph: onnx.GraphProto) -> tuple[int, int]:
    counts = Counter(node.op_type for node in graph.node)
    return counts["QuantizeLinear"], counts["DequantizeLinear"]


def _reads(node: onnx.NodeProto) -> list[str]:
    nested = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*node.input, *(name for graph in nested for inner in graph.node for name in _reads(inner))]
