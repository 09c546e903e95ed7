"""Tensors that may have no rows: what ONNX Runtime (1.31) makes of the shapes of reductions is set right.

It gives a reduction of a tensor without elements the shape of what was reduced: a maximum over the classes of no
sample, [0, 5], is [0, 5] too and not [0]. Only sizes that depend on data become 0: those of what `NonZero` finds, and
of everything that is computed from that.

A group norm is written out, where its sizes are known: ONNX Runtime's own fails without rows.

Not handled: reductions over all dimensions; branches of a conditional.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

__all__ = ["allow_no_rows"]

_REDUCTIONS = frozenset({"ArgMax", "ArgMin"})
_EPSILON = 1e-5
_SIZES = frozenset({"Shape", "Size"})


def allow_no_rows(graph: ir.Graph, inputs: Iterable[ir.Value]) -> None:
    """Put a Reshape behind every reduction of a tensor whose number of rows depends on the data.

    Args:
        graph: to change.
        inputs: those of its inputs that may have no rows.
    """
    dependent = set(inputs)
    for node in list(graph):
        if node.op_type not in _SIZES and (node.op_type == "NonZero" or not dependent.isdisjoint(_given(node))):
            if node.op_type == "GroupNormalization":
                dependent.add(_normalized(graph, node))
                continue
            dependent.update(node.outputs)
            if node.op_type in _REDUCTIONS or node.op_type.startswith("Reduce"):
                dependent.add(_reshaped(graph, node))


def _normalized(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return what stands for a group norm, which reshapes rows by a -1 that could be any where there are none."""
    source, scale, bias = node.inputs
    result = node.outputs[0]
    sizes = list(source.shape)[1:] if source is not None and source.shape is not None else []
    known = [size for size in sizes if isinstance(size, int)]
    if source is None or scale is None or bias is None or not known or len(known) < len(sizes):
        return result
    channels, *positions = known
    groups = node.attributes.get_int("num_groups")
    inner = channels // groups * math.prod(positions)
    ones = ir.node("Constant", [], {"value": ir.tensor(np.ones(inner, source.dtype.numpy() if source.dtype else None))})
    graph.insert_before(graph[0], ones)
    rows = ir.node("Reshape", [source, _numbers(graph, [-1, groups, inner])])
    normal = ir.node(
        "LayerNormalization",
        [rows.outputs[0], ones.outputs[0]],
        {"axis": -1, "epsilon": node.attributes.get_float("epsilon", _EPSILON)},
    )
    back = ir.node("Reshape", [normal.outputs[0], _numbers(graph, [-1, channels, *positions])])
    column = _numbers(graph, [channels, *(1 for _ in positions)])
    factor, term = (ir.node("Reshape", [each, column]) for each in (scale, bias))
    scaled = ir.node("Mul", [back.outputs[0], factor.outputs[0]])
    total = ir.node("Add", [scaled.outputs[0], term.outputs[0]])
    found = _inserted(graph, node, result, [rows, normal, back, factor, term, scaled, total])
    graph.remove(node, safe=True)
    return found


def _given(node: ir.Node) -> list[ir.Value]:
    return [each for each in node.inputs if each is not None]


def _reshaped(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return what stands for the result of a reduction."""
    source, result = node.inputs[0], node.outputs[0]
    axes = _axes(node)
    if source is None or not axes:
        return result
    known = _shape_of_rows(result)
    if known:
        return _inserted(graph, node, result, [ir.node("Reshape", [result, _numbers(graph, known)])])
    reduced, ones = _numbers(graph, axes), _numbers(graph, [1] * len(axes))
    shape = ir.node("Shape", [source])
    sizes = ir.node("ScatterElements", [shape.outputs[0], reduced, ones])
    # Without it a 0 would stand for the size of what is reshaped.
    made = [shape, sizes, ir.node("Reshape", [result, sizes.outputs[0]], {"allowzero": 1})]
    if not node.attributes.get_int("keepdims", 1):
        node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
        made.append(ir.node("Squeeze", [made[-1].outputs[0], reduced]))
    return _inserted(graph, node, result, made)


def _shape_of_rows(result: ir.Value) -> list[int]:
    """Return what makes no rows of none, [-1, ...], where all other sizes are known; [] where they are not."""
    if result.shape is None or not len(result.shape):
        return []
    rows, *others = result.shape
    sizes = [size for size in others if isinstance(size, int) and size > 0]
    return [] if isinstance(rows, int) or len(sizes) < len(others) else [-1, *sizes]


def _inserted(graph: ir.Graph, node: ir.Node, result: ir.Value, made: Sequence[ir.Node]) -> ir.Value:
    """Insert what shapes the result of a reduction, and return what stands for it."""
    shaped = made[-1].outputs[0]
    shaped.shape, shaped.type, result.shape = result.shape, result.type, None
    graph.insert_after(node, made)
    for each in made:
        each.metadata_props.update(node.metadata_props)
    for user, index in tuple(result.uses()):
        if user not in made:
            user.replace_input_with(index, shaped)
    for index, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[index] = shaped
    return shaped


def _axes(node: ir.Node) -> list[int]:
    if node.op_type in _REDUCTIONS:
        return [node.attributes.get_int("axis", 0)]
    if len(node.inputs) > 1:
        value = node.inputs[1]
        return [] if value is None or value.const_value is None else value.const_value.numpy().tolist()
    return list(node.attributes.get_ints("axes", []))


def _numbers(graph: ir.Graph, values: Sequence[int]) -> ir.Value:
    constant = ir.node("Constant", [], {"value": ir.tensor(np.array(values, np.int64))})
    graph.insert_before(graph[0], constant)
    return constant.outputs[0]
