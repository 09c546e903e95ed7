"""How the other operators move units: element by element, reductions, pools, lookups."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import operator_name
from burnish.passes.pruning.flow import Flow, Value, flow_rule, sizes_of
from burnish.passes.pruning.layouts import Layout

__all__ = ["elementwise"]

_REDUCED = "it is reduced over"
_STATISTICS = ("aten.mean", "aten.var")


# PyTorch tags most of them; these it does not.
@flow_rule(
    "aten.hardswish", "aten.log_sigmoid", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar",
    "aten.masked_fill.Tensor", "aten.copy", "aten.expand_as", "aten.fill.Scalar", "burnish.quick_gelu",
)  # fmt: skip
def elementwise(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Tensors that broadcast together."""
    operands = [(flow.layout(each), sizes_of(each)) for each in node.all_input_nodes if sizes_of(each)]
    return flow.broadcast(operands, "what it is combined with stays")


@flow_rule(
    "aten.clone", "aten.contiguous", "aten.to.dtype", "aten._to_copy", "aten.detach", "aten.alias", "aten.dropout",
    "aten.zeros_like", "aten.ones_like", "aten.full_like",
)  # fmt: skip
def same(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """The value, or one of its shape."""
    return flow.layout(node.args[0])


@flow_rule(
    "aten.softmax.int", "aten._softmax", "aten.log_softmax.int", "aten._log_softmax", "aten.cumsum", "aten.glu",
    "aten.logcumsumexp", "aten.cumprod",
)  # fmt: skip
def along_one(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Something over one dimension, which stays."""
    return flow.kept(given["self"], "it is computed over", [given["dim"]])


@flow_rule(
    "aten.mean.dim", "aten.sum.dim_IntList", "aten.amax", "aten.amin", "aten.var.correction", "aten.std.correction",
    "aten.logsumexp", "aten.linalg_vector_norm", "aten.any.dim", "aten.all.dim", "aten.argmax", "aten.argmin",
    "aten.prod.dim_int",
)  # fmt: skip
def reduced(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Some dimensions are reduced, and go or become 1."""
    source, dims = given["self"], given["dim"]
    rank = len(sizes_of(source))
    gone = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
    units = flow.along(source, -1) if flow.cuts_features and gone == {rank - 1} and given["keepdim"] else None
    if units is not None and operator_name(node.target).startswith(_STATISTICS):
        # A norm that is written out: its statistics are those of the features that stay.
        flow.features.append(units)
        return flow.layout(source).without(gone)
    layout = flow.kept(source, _REDUCED, sorted(gone))
    if given["keepdim"]:
        return layout
    rest = [dim for dim in range(rank) if dim not in gone]
    return layout.moved({dim: place for place, dim in enumerate(rest)})


@flow_rule("aten.sum", "aten.mean", "aten.max", "aten.min", "aten.prod", "aten.std", "aten.var", "aten.any", "aten.all")
def reduced_wholly(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """One number is left."""
    flow.freeze(given["self"], _REDUCED)
    return Layout()


@flow_rule("aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.topk", "aten.sort", "aten.kthvalue")
def ranked(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Values and places along one dimension, which stays."""
    source, dim = given["self"], given["dim"] % len(sizes_of(given["self"]))
    layout = flow.kept(source, _REDUCED, [dim])
    rank = len(sizes_of(source))
    if len(node.meta["val"][0].shape) < rank:
        layout = layout.moved({each: each - (each > dim) for each in range(rank) if each != dim})
    return [layout, layout]


@flow_rule(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d",
    "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", "aten.adaptive_max_pool2d",
    "aten._adaptive_avg_pool2d", "aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec",
    "aten.upsample_bilinear2d.vec", "aten.upsample_bicubic2d.vec", "aten.upsample_nearest1d",
    "aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d",
)  # fmt: skip
def resampled(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Windows or grids over what stands behind the channels."""
    source = node.args[0]
    name, rank = str(node.target), len(sizes_of(source))
    spatial = next(count for count in (1, 2, 3) if f"{count}d" in name)
    layout = flow.kept(source, "windows move over it", range(rank - spatial, rank))
    return [layout, layout] if isinstance(node.meta["val"], (tuple, list)) else layout


@flow_rule("aten.index.Tensor")
def looked_up(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Positions of one dimension, by a tensor; which ones may be known at run time only."""
    source, indices = given["self"], given["indices"]
    used = [dim for dim, index in enumerate(indices) if index is not None]
    for index in indices:
        if index is not None:
            flow.freeze(index, "it is an index")
    layout = flow.kept(source, "its positions are taken by number", used)
    # A tensor of booleans stands for as many dimensions as it has.
    chooses = any(index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)
    if len(used) != 1 or chooses:
        layout.freeze(flow.units, "its positions are taken by number")
        return Layout()
    added = len(sizes_of(indices[used[0]])) - 1
    rank = len(sizes_of(source))
    return layout.moved({dim: dim + added * (dim > used[0]) for dim in range(rank) if dim != used[0]})


@flow_rule("aten.index_select")
def selected_rows(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Positions of one dimension, by a vector."""
    flow.freeze(given["index"], "it is an index")
    return flow.kept(given["self"], "its positions are taken by number", [given["dim"]])


@flow_rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def shuffled(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Channels as (groups, channels of a group), mirrored."""
    shape, groups = sizes_of(node), given["groups"]
    split = [shape[0], groups, shape[1] // groups, *shape[2:]]
    mirrored = [split[0], split[2], split[1], *split[3:]]
    rank = len(split)
    places = {**{dim: dim for dim in range(rank)}, 1: 2, 2: 1}
    found = flow.layout(given["self"]).reshaped(shape, split, flow.units)
    flow.inner.append(found)
    return found.moved(places).reshaped(mirrored, shape, flow.units)
