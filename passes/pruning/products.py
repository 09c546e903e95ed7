"""How products of activations tie units: matrix products, attention.

Heads are a dimension before the matrices. Where a view made heads and their features of one dimension, heads go whole:
their features set the scale of attention, and rows and columns of one head mean nothing in another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from burnish.passes.pruning.flow import Flow, Value, flow_rule, sizes_of
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Numbers

__all__: list[str] = []

_SUMMED = "what it is multiplied with stays"
_BESIDE = "what it is added to stays"
_BATCH = "a product of matrices runs over it"


@flow_rule("aten.matmul", "aten.bmm", "aten.mm")
def product(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """[..., M, K] times [..., K, N]: K is shared, dimensions before broadcast."""
    left, right = given["self"], given["mat2"] if "mat2" in given else given["other"]
    return _product(left, right, node, flow)


@flow_rule("aten.addmm", "aten.baddbmm")
def product_and_sum(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """The same, and something that broadcasts to it."""
    left, right = (given["mat1"], given["mat2"]) if "mat1" in given else (given["batch1"], given["batch2"])
    found = _product(left, right, node, flow)
    return flow.broadcast([(found, sizes_of(node)), (flow.layout(given["self"]), sizes_of(given["self"]))], _BESIDE)


def _product(left: Any, right: Any, node: fx.Node, flow: Flow) -> Layout:
    shapes = sizes_of(left), sizes_of(right)
    if min(map(len, shapes)) < 2:
        for each in (left, right):
            flow.freeze(each, "it is a vector in a product")
        return Layout()
    layouts = [_by_batch(each, flow) for each in (left, right)]
    rows, columns = _end(layouts[0], shapes[0], -2, flow), _end(layouts[1], shapes[1], -1, flow)
    flow.tie(_end(layouts[0], shapes[0], -1, flow), _end(layouts[1], shapes[1], -2, flow), _SUMMED)
    batch = flow.broadcast([_batch(*each) for each in zip(layouts, shapes, strict=True)], _BATCH)
    return _result(batch, node, rows, columns, flow)


@flow_rule("aten.scaled_dot_product_attention")
def attention(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """softmax(q k^T + mask) v over [..., heads, tokens, features]; grouped heads share one of keys and values."""
    tensors = [given[name] for name in ("query", "key", "value")]
    for each in tensors:
        flow.freeze(each, "attention runs over it", [-2])
    layouts, shapes = [_by_batch(each, flow) for each in tensors], [list(sizes_of(each)) for each in tensors]
    for layout, shape in zip(layouts[:2], shapes, strict=False):
        features = _end(layout, shape, -1, flow)
        if features is not None:
            flow.units.freeze(features, "the scale of attention is over it")
    columns = _end(layouts[2], shapes[2], -1, flow)
    if given["enable_gqa"]:
        for index in (1, 2):
            layouts[index], shapes[index] = _repeated_heads(layouts[index], shapes[index], shapes[0][-3], flow)
    operands = [_batch(*each) for each in zip(layouts, shapes, strict=True)]
    mask = given["attn_mask"]
    if mask is not None:
        flow.freeze(mask, "a mask is over it", range(-min(2, len(sizes_of(mask))), 0))
        operands.append(_batch(flow.layout(mask), sizes_of(mask)))
    return _result(flow.broadcast(operands, _BATCH), node, None, columns, flow)


def _by_batch(value: fx.Node, flow: Flow) -> Layout:
    """Return the layout of a stack of matrices, without blocks that reach from the stack into the matrices."""
    layout, rank = flow.layout(value), len(sizes_of(value))
    for dim in (rank - 1, rank - 2):
        block = layout.block(dim)
        outer = [each for each in block.dims if each < rank - 2] if block is not None else []
        if outer:
            layout = layout.narrowed(outer[-1], flow.units)
    return layout


def _end(layout: Layout, shape: Any, dim: int, flow: Flow) -> Numbers | None:
    return layout.along(len(shape) + dim, flow.units)


def _batch(layout: Layout, shape: Any) -> tuple[Layout, Any]:
    rank = len(shape)
    return layout.without([rank - 1, rank - 2]), shape[: max(rank - 2, 0)]


def _repeated_heads(layout: Layout, shape: list[Any], heads: Any, flow: Flow) -> tuple[Layout, list[Any]]:
    """Return keys or values as they are for every head of the queries."""
    dim = len(shape) - 3
    found, times = layout.along(dim, flow.units), heads // shape[dim]
    shape[dim] = heads
    if found is None:
        return layout, shape
    return Layout((*layout.without([dim]).blocks, Block((dim,), np.repeat(found, times)))), shape


def _result(batch: Layout, node: fx.Node, rows: Numbers | None, columns: Numbers | None, flow: Flow) -> Layout:
    rank = len(sizes_of(node))
    flow.heads += [block.units for block in batch.blocks]
    ends = [Block((dim,), units) for dim, units in ((rank - 2, rows), (rank - 1, columns)) if units is not None]
    return Layout.of((*batch.blocks, *ends))
