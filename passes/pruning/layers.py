"""How layers tie units: convolutions, linear layers, embeddings, norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from burnish.passes.pruning.flow import Flow, Value, flow_rule, sizes_of
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Numbers

__all__ = ["STATISTICS", "STAYS", "convolution", "linear", "normed", "outputs", "transposed_convolution"]

STAYS = "what it meets stays"
STATISTICS = "a norm's statistics are over it"
"""Reasons why units stay."""


@flow_rule("aten.linear")
def linear(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Input [..., I] and weight [O, I] share I; weight and bias give O."""
    flow.tie(flow.along(given["input"], -1), flow.along(given["weight"], 1), STAYS)
    last = len(sizes_of(given["input"])) - 1
    rest = flow.layout(given["input"]).without([last])
    if len(sizes_of(given["weight"])) != 2:
        flow.freeze(given["weight"], "it is a vector")
        return rest
    return _with(rest, len(sizes_of(node)) - 1, outputs(given["weight"], 0, given["bias"], flow))


@flow_rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Input [B, I, ...] and weight [O, I / groups, ...]; what grouped convolutions keep equal is tied."""
    value, weight, groups = given["input"], given["weight"], given["groups"]
    channel = _channels(value, weight, flow)
    read, taken = flow.along(value, channel), flow.along(weight, 1)
    made = outputs(weight, 0, given["bias"], flow)
    if groups == 1:
        flow.tie(read, taken, STAYS)
    elif sizes_of(weight)[1] == 1:
        made = _by_group(read, made, groups, flow)
    else:
        # Every group keeps as many inputs and outputs: the places are the same in all of them.
        if read is not None:
            flow.units.tie_along(read.reshape(groups, -1), 0)
        flow.tie(None if read is None else read.reshape(groups, -1)[0], taken, STAYS)
        if made is not None:
            flow.units.tie_along(made.reshape(groups, -1), 0)
    return _with(_spatial(value, channel, flow), channel, made)


@flow_rule("aten.conv_transpose1d", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def transposed_convolution(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Input [B, I, ...] and weight [I, O / groups, ...]; what grouped ones keep equal is tied."""
    value, weight, groups = given["input"], given["weight"], given["groups"]
    channel = _channels(value, weight, flow)
    read, taken = flow.along(value, channel), flow.along(weight, 0)
    flow.tie(read, taken, STAYS)
    made, bias = flow.along(weight, 1), given["bias"]
    if groups > 1 and sizes_of(weight)[0] == groups:
        # A group has one input, and can go with its outputs.
        if made is not None:
            flow.units.freeze(made, STAYS)
        made = None if taken is None else np.repeat(taken, _size(weight, 1))
    elif groups > 1:
        if taken is not None:
            flow.units.tie_along(taken.reshape(groups, -1), 0)
        made = np.tile(made, groups) if made is not None else None
    if bias is not None:
        flow.tie(made, flow.along(bias, 0), STAYS)
    return _with(_spatial(value, channel, flow), channel, made)


@flow_rule("aten.embedding")
def embedding(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Rows of a table [V, D]; which rows is known at run time only."""
    flow.freeze(given["indices"], "it is an index")
    flow.freeze(given["weight"], "any row may be asked for", [0])
    return _with(Layout(), len(sizes_of(node)) - 1, flow.along(given["weight"], 1))


@flow_rule("aten.batch_norm")
def batch_norm(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Every channel has numbers of its own."""
    layout = flow.layout(given["input"]).narrowed(1, flow.units)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if given[name] is not None:
            flow.tie(layout.along(1, flow.units), flow.along(given[name], 0), STAYS)
    return layout


@flow_rule("aten.instance_norm")
def instance_norm(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Every channel of every sample has statistics of its own."""
    found = batch_norm(node, given, flow)
    return found.without(_over_positions(given["input"], flow)) if isinstance(found, Layout) else found


@flow_rule("aten.prelu")
def prelu(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Every channel has a slope of its own, or all have one."""
    layout = flow.layout(given["self"])
    if sizes_of(given["weight"]) != (1,):
        layout = layout.narrowed(1, flow.units)
        flow.tie(layout.along(1, flow.units), flow.along(given["weight"], 0), STAYS)
    return layout


@flow_rule("aten.group_norm")
def group_norm(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Whole groups may go: the statistics of the others stay what they are."""
    value, groups = given["input"], given["num_groups"]
    channels = flow.along(value, 1)
    for name in ("weight", "bias"):
        if given[name] is not None:
            flow.tie(channels, flow.along(given[name], 0), STAYS)
    if channels is not None:
        if groups == 1:
            flow.units.freeze(channels, STATISTICS)
        flow.units.tie_along(channels.reshape(groups, -1), 1)
    return flow.layout(value).narrowed(1, flow.units).without(_over_positions(value, flow))


@flow_rule("aten.layer_norm", "aten.rms_norm")
def norm_of_features(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Without a feature the statistics of the others would change."""
    return normed(flow.layout(given["input"]), node, given, flow)


def normed(layout: Layout, node: fx.Node, given: dict[str, Any], flow: Flow) -> Layout:
    """Freeze the features of what a norm reads, or tie them to its parameters; return the layout of the result."""
    parameters = [given[name] for name in ("weight", "bias") if given.get(name) is not None]
    result = node.meta["val"]
    rank, count = len((result if isinstance(result, torch.Tensor) else result[0]).shape), len(given["normalized_shape"])
    units = layout.along(rank - 1, flow.units) if flow.cuts_features and count == 1 else None
    if units is None:
        for each in parameters:
            flow.freeze(each, STATISTICS)
        layout.freeze(flow.units, STATISTICS, range(rank - count, rank))
        return layout.without(range(rank - count, rank))
    for each in parameters:
        flow.tie(units, flow.along(each, 0), STAYS)
    flow.features.append(units)
    return layout.narrowed(rank - 1, flow.units)


def _over_positions(value: fx.Node, flow: Flow) -> range:
    """Freeze what stands behind the channels, which statistics are taken over; return these dimensions."""
    dims = range(2, len(sizes_of(value)))
    flow.freeze(value, STATISTICS, dims)
    return dims


def _size(value: fx.Node, dim: int) -> int:
    size = sizes_of(value)[dim]
    assert isinstance(size, int), "weights have known sizes"
    return size


def _channels(value: fx.Node, weight: fx.Node, flow: Flow) -> int:
    """Return the dimension of the channels of what a convolution reads; the taps of its weight stay."""
    taps = len(sizes_of(weight)) - 2
    flow.freeze(weight, "it is a tap of a convolution", range(2, taps + 2))
    return len(sizes_of(value)) - taps - 1


def outputs(weight: fx.Node, dim: int, bias: fx.Node | None, flow: Flow) -> Numbers | None:
    """Return the units of what a weight gives, tied to its bias."""
    made = flow.along(weight, dim)
    if bias is not None:
        flow.tie(made, flow.along(bias, 0), STAYS)
    return made


def _by_group(read: Numbers | None, made: Numbers | None, groups: int, flow: Flow) -> Numbers | None:
    """Tie the channels of a convolution with one input a group, whose groups can go one by one."""
    for each in (read, made):
        if each is not None and (read is None or made is None):
            flow.units.freeze(each, STAYS)
    if read is None or made is None:
        return None
    flow.units.tie(made.reshape(groups, -1), read.reshape(groups, 1))
    return made


def _spatial(value: fx.Node, channel: int, flow: Flow) -> Layout:
    """Return the layout of the batch; what windows move over stays."""
    rank = len(sizes_of(value))
    return flow.kept(value, "windows move over it", list(range(channel + 1, rank))).without([channel])


def _with(layout: Layout, dim: int, units: Numbers | None) -> Layout:
    return layout if units is None else Layout.of((*layout.blocks, Block((dim,), units)))
