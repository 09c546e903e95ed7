"""Pairs of quantize and dequantize on TensorRT: symmetric, int8, in place, on both operands, and where they pay.

A pair is QuantizeLinear and the DequantizeLinear that read it; a constant weight may be stored as integers behind its
DequantizeLinear alone. Activations have one scale; weights may have one for each output channel.

Not handled: types of 8 and 4 bits with a floating point, of which only the types are checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.nodes import Node
from burnish.backends.readiness.table import Table
from burnish.compiler.backend import Finding

__all__ = ["pair_findings"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FIX = "quantize with the pass `quantize` for `onnx{dialect=tensorrt}`"
_FAR = 8


def pair_findings(graph: Graph, table: Table) -> Iterator[Finding]:
    """Yield pairs that TensorRT refuses, and those that it would compute in float."""
    for node in graph.nodes():
        if node.operator in (_QUANTIZE, _DEQUANTIZE):
            yield from _number_findings(node)
            yield from _axis_findings(node, table)
            yield from _place_findings(node, table)
        elif node.operator in table.layers:
            yield from _layer_findings(node, table)
        elif node.operator == "Concat":
            yield from _concat_findings(node)
        elif node.operator == "Add":
            yield from _sum_findings(node)


def _number_findings(node: Node) -> Iterator[Finding]:
    """Look at types, scales and zero points."""
    integers = _integer_type(node)
    if node.operator == _DEQUANTIZE and integers == "int32":
        reason = "it dequantizes int32, as for a quantized bias; TensorRT wants the bias in float"
        yield node.finding("quantization", reason, _FIX)
    elif integers in ("uint8", "uint4", "uint16", "int16"):
        yield node.finding("quantization", f"the integers are {integers}; TensorRT has int8", _FIX)
    scale, point = node.constant(1), node.constant(2)
    if point is not None and np.any(point.astype(np.float64) != 0):
        worst = int(point.reshape(-1)[np.argmax(point.reshape(-1) != 0)])
        yield node.finding("quantization", f"the zero point is {worst}; TensorRT is symmetric: it must be 0", _FIX)
    elif node.input(2) and not node.scope.is_known(node.input(2)):
        reason = "the zero point is found at run time; TensorRT is symmetric: it must be 0"
        yield node.finding("quantization", reason, "quantize with calibration data, by the pass `quantize`")
    if scale is not None and not np.all(scale.astype(np.float64) > 0):
        yield node.finding("quantization", "a scale is not positive", _FIX)
    elif scale is None and not node.scope.is_known(node.input(1)):
        reason = "the scale is found at run time; TensorRT quantizes to int8 by scales that it knows when it builds"
        yield node.finding("quantization", reason, "quantize with calibration data, by the pass `quantize`")
    if scale is not None and point is not None and scale.size != point.size:
        yield node.finding("quantization", f"{scale.size} scales and {point.size} zero points", _FIX)
    if node.attribute("block_size", 0) and integers == "int8":
        yield node.finding("quantization", "int8 in blocks; TensorRT quantizes to int8 per tensor or channel", _FIX)


def _axis_findings(node: Node, table: Table) -> Iterator[Finding]:
    """Look at scales along a dimension: only of weights, and only along their output channels."""
    scales, shape = node.scope.shape(node.input(1)), node.shape(0)
    count = scales[0] if scales is not None and len(scales) == 1 else 1
    if count == 1 or shape is None or node.attribute("block_size", 0):
        return
    axis = node.attribute("axis", 1)
    axis += len(shape) if axis < 0 else 0
    if not 0 <= axis < len(shape):
        yield node.finding("quantization", f"axis {axis}, where there are {len(shape)} dimensions", _FIX)
        return
    if isinstance(shape[axis], int) and isinstance(count, int) and shape[axis] != count:
        reason = f"{count} scales along dimension {axis}, which has {shape[axis]} channels"
        yield node.finding("quantization", reason, _FIX)
    if not node.scope.is_known(node.input(0)):
        reason = "an activation with a scale for each channel; TensorRT has one for the whole tensor"
        yield node.finding("quantization", reason, _FIX)
        return
    for reader, slot, moved in _uses(node, axis, table):
        wanted = _channel_axis(reader, slot)
        if reader.operator in table.layers and slot == 1 and moved != wanted:
            reason = f"scales along dimension {axis} are not along the output channels of {reader.name}"
            yield node.finding("quantization", reason, _FIX)


def _place_findings(node: Node, table: Table) -> Iterator[Finding]:
    """Look at who reads: integers go to a dequantize alone, and a pair pays only before what computes in int8."""
    if node.operator == _QUANTIZE:
        for reader in node.readers():
            if reader.operator != _DEQUANTIZE:
                reason = f"its integers go to {reader.name} ({reader.operator}) without a DequantizeLinear between"
                yield node.finding("quantization", reason, _FIX)
        return
    source = node.source(0)
    if source is not None and source.operator != _QUANTIZE and not node.scope.is_known(node.input(0)):
        reason = f"the integers that it reads come from {source.name} ({source.operator}), not from a QuantizeLinear"
        yield node.finding("quantization", reason, _FIX)
    readers = node.readers()
    if readers and not any(reader.operator in table.readers for reader in readers):
        names = ", ".join(dict.fromkeys(reader.operator for reader in readers))
        reason = f"TensorRT has no int8 kernel for what reads it ({names}): the pair does not fuse, and takes time"
        yield node.finding("fusion", reason, _FIX)


def _layer_findings(node: Node, table: Table) -> Iterator[Finding]:
    """Look for a pair before one operand of a layer and none before the other."""
    sides = [_is_dequantized(node, index, table) for index in (0, 1)]
    if any(sides) and not all(sides):
        missing = "its input" if sides[1] else "its weight"
        reason = f"no pair stands before {missing}, but one before the other operand: it computes in float"
        yield node.finding("quantization", reason, _FIX)


def _concat_findings(node: Node) -> Iterator[Finding]:
    sources = [node.source(index) for index in range(len(node.proto.input))]
    if len(sources) < 2 or not all(each is not None and each.operator == _DEQUANTIZE for each in sources):
        return
    scales = [each.constant(1) for each in sources if each is not None]
    if any(scale is None or not np.array_equal(scale, scales[0]) for scale in scales):  # type: ignore[arg-type]
        yield node.finding("fusion", "what it joins has different scales: the pairs do not fuse with it", _FIX)


def _sum_findings(node: Node) -> Iterator[Finding]:
    """Look for a sum of a convolution with a pair on both sides: then the two do not become one kernel."""
    sources = [node.source(index) for index in (0, 1)]
    if not all(each is not None and each.operator == _DEQUANTIZE for each in sources):
        return
    makers = [_maker(each) for each in sources if each is not None]
    if any(each is not None and each.operator in ("Conv", "ConvTranspose") and _is_read_once(each) for each in makers):
        reason = "both operands have a pair: TensorRT joins sum and convolution where only the shortcut has one"
        yield node.finding("fusion", reason, _FIX)


def _integer_type(node: Node) -> str:
    if node.operator == _DEQUANTIZE:
        return node.dtype(0)
    return node.dtype(2) or node.scope.dtype(node.proto.output[0])


def _maker(dequantize: Node) -> Node | None:
    """Return what computes the floats of a pair."""
    quantize = dequantize.source(0)
    return quantize.source(0) if quantize is not None and quantize.operator == _QUANTIZE else None


def _is_read_once(node: Node) -> bool:
    """Tell whether a result goes to one node: one that others read too is not joined with any of them."""
    value = node.proto.output[0]
    return len(node.scope.readers(value)) == 1 and not node.scope.is_output(value)


def _is_dequantized(node: Node, index: int, table: Table) -> bool:
    """Tell whether an operand comes from a DequantizeLinear, perhaps rearranged."""
    source = node.source(index)
    for _ in range(_FAR):
        if source is None or source.operator not in table.movers:
            break
        source = source.source(0)
    return source is not None and source.operator == _DEQUANTIZE


def _uses(node: Node, axis: int, table: Table) -> Iterator[tuple[Node, int, int]]:
    """Yield who computes with a weight: the node, its operand, and where `axis` of the weight is there."""
    value = node.proto.output[0]
    for reader in node.readers():
        slot = list(reader.proto.input).index(value)
        if reader.operator == "Transpose":
            moved = reader.attribute("perm")
            rank = len(reader.shape(0) or ())
            places = list(moved) if moved is not None else list(range(rank))[::-1]
            if axis in places:
                yield from _uses(reader, places.index(axis), table)
        elif reader.operator not in table.movers:
            yield reader, slot, axis


def _channel_axis(layer: Node, slot: int) -> int:
    """Return the dimension of a layer's weight that holds its output channels."""
    rank = len(layer.shape(slot) or (0, 0))
    if layer.operator == "Conv":
        return 0
    if layer.operator == "ConvTranspose":
        return 1
    if layer.operator == "Gemm":
        return 0 if layer.attribute("transB", 0) else 1
    return rank - 1
