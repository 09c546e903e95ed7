"""How fused operators tie units: layers with a residual, attention over tokens, rotary embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from burnish.passes.pruning.flow import Flow, Value, flow_rule, sizes_of
from burnish.passes.pruning.layers import STAYS, convolution, linear, normed, outputs, transposed_convolution
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Numbers

__all__: list[str] = []

_ATTENTION = "attention runs over it"


@flow_rule("burnish.linear_act")
def linear_and_sum(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """A linear layer, and a residual that has its form."""
    return _with_residual(linear(node, given, flow), node, given, flow)


@flow_rule("burnish.conv_act")
def convolution_and_sum(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """A convolution, transposed or not, and a residual that has its form."""
    rule = transposed_convolution if given["transposed"] else convolution
    return _with_residual(rule(node, given, flow), node, given, flow)


@flow_rule("burnish.skip_layer_norm", "burnish.skip_rms_norm")
def norm_of_sum(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """The norm of a sum, and the sum."""
    added = [given[name] for name in ("input", "skip", "input_bias") if given[name] is not None]
    found = flow.broadcast([(flow.layout(each), sizes_of(each)) for each in added], STAYS)
    kept = normed(found, node, given, flow)
    return [kept, kept]


@flow_rule("burnish.embedding_layer_norm")
def norm_of_embeddings(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """The norm of a sum of rows of tables."""
    last = len(sizes_of(node)) - 1
    for table in given["tables"]:
        flow.freeze(table, "any row may be asked for", [0])
    for each in given["ids"]:
        flow.freeze(each, "it is an index")
    rows = [flow.along(table, 1) for table in given["tables"]]
    operands = [(Layout.of([Block((last,), each)] if each is not None else []), sizes_of(node)) for each in rows]
    if given["added"] is not None:
        operands.append((flow.layout(given["added"]), sizes_of(given["added"])))
    return normed(flow.broadcast(operands, STAYS), node, given, flow)


@flow_rule("burnish.multi_head_attention")
def attention_over_tokens(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Heads lie side by side in the last dimension, and go whole."""
    for name in ("query", "key", "value"):
        flow.freeze(given[name], _ATTENTION, [1])
    return _attended([flow.along(given[name], -1) for name in ("query", "key", "value")], node, given, flow)


@flow_rule("burnish.self_attention")
def self_attention(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """The same, of the three parts of one projection."""
    flow.freeze(given["input"], _ATTENTION, [1])
    flow.tie(flow.along(given["input"], -1), flow.along(given["weight"], 1), STAYS)
    rows, heads, kv_heads = outputs(given["weight"], 0, given["bias"], flow), given["heads"], given["kv_heads"]
    if rows is None:
        return _attended([None, None, None], node, given, flow)
    by_head = rows.reshape(heads + 2 * kv_heads, -1)
    parts = np.split(by_head, [heads, heads + kv_heads])
    return _attended([part.ravel() for part in parts], node, given, flow)


@flow_rule("burnish.rotary_embedding")
def rotary_embedding(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Every head is turned by itself."""
    for name in ("cos", "sin"):
        flow.freeze(given[name], "all heads are turned by it")
    last = len(sizes_of(node)) - 1
    layout = flow.kept(given["input"], "positions are turned by it", [last - 1])
    found = layout.along(last, flow.units)
    if found is not None:
        flow.units.tie_along(found.reshape(given["heads"], -1), 1)
    return layout.narrowed(last, flow.units)


def _with_residual(value: Value, node: fx.Node, given: dict[str, Any], flow: Flow) -> Layout:
    assert isinstance(value, Layout)
    residual = given["residual"]
    if residual is None:
        return value
    operands = [(value, sizes_of(node)), (flow.layout(residual), sizes_of(residual))]
    return flow.broadcast(operands, "what it is added to stays")


def _attended(parts: list[Numbers | None], node: fx.Node, given: dict[str, Any], flow: Flow) -> Layout:
    """Tie the heads of queries, keys, values and mask; return the layout of the result, [B, S, heads * V]."""
    heads, mask = given["heads"], given["mask"]
    operands: list[tuple[Layout, Any]] = []
    for part, count in zip(parts, (heads, given["kv_heads"], given["kv_heads"]), strict=True):
        layout = Layout()
        if part is not None:
            by_head = part.reshape(count, -1)
            flow.units.tie_along(by_head, 1)
            layout = Layout((Block((1,), np.repeat(by_head[:, 0], heads // count)),))
        operands.append((layout, (1, heads, 1, 1)))
    if mask is not None:
        rank = len(sizes_of(mask))
        flow.freeze(mask, _ATTENTION, [dim for dim in range(-rank, 0) if dim != -3])
        operands.append((flow.layout(mask), sizes_of(mask)))
    found = flow.broadcast(operands, _ATTENTION).block(1)
    if found is not None:
        flow.heads.append(found.units)
    size = sizes_of(node)[-1]
    assert isinstance(size, int), "heads have a known size"
    return Layout() if found is None else Layout.of([Block((2,), np.repeat(found.units, size // heads))])
