"""Rules: Low-rank adapters, parallel layers that are added, and linear layers in a row merge into one.

`W x + B (A x)` is `(W + B A) x`; so is a sum with several adapters, or with another layer on x, in any order, and with
a pointwise convolution B behind a convolution A. What scales an adapter is in its weights by then (see `scales`).
`W2 (W1 x + b1) + b2` is one layer where that takes fewer multiplications.

Not handled: sums of layers that read different inputs or slide differently over them, grouped and transposed
convolutions, a sum with a factor (alpha), an adapter without the layer that it adapts, a weight W that another operator
reads, half precision, convolutions in a row.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.types import same_type
from burnish.passes.canonical.weights import own_constant, rounded, single_user
from burnish.passes.fusion.matching import addends, calls, erase_unused, only_user

__all__ = ["RULES"]

_LINEAR = find_operator("aten.linear")
# How many times smaller the product of two weights may be than random ones would give: below, the layers cancel out,
# and what the model computes is mostly rounding.
_MOST_CANCELLED = 64.0


@rule("aten.add.Tensor")
def parallel_layers(node: fx.Node, rewriter: Rewriter) -> None:
    """A sum of layers on one input, low-rank adapters among them, is one layer."""
    if not _is_sum(node) or ((user := only_user(node)) is not None and _is_sum(user)):
        return
    groups: dict[Hashable, list[AffineLayer]] = {}
    for leaf in dict.fromkeys(_leaves(node)):
        layer = _plain(leaf)
        if layer is not None:
            groups.setdefault(_key(layer), []).append(layer)
    adapters: dict[Hashable, list[AffineLayer]] = {}
    joined = set()
    for key, group in groups.items():
        inner = _inner(group[0])
        if inner is not None and _key(inner) in groups:
            adapters.setdefault(_key(inner), []).extend(group)
            joined.add(key)
    for key, group in groups.items():
        members = group + adapters.get(key, [])
        if key not in joined and len(members) > 1:
            _merge(members, rewriter)


@rule("aten.linear")
def linear_in_a_row(node: fx.Node, rewriter: Rewriter) -> None:
    """linear(linear(x)) is one linear layer, where that takes fewer multiplications."""
    first = arguments(node)["input"]
    outer, inner = AffineLayer.of(node), AffineLayer.of(first) if calls(first, "aten.linear") else None
    if outer is None or inner is None:
        return
    try:
        single_user(first)
        w2 = own_constant(outer.weight, "weight", rewriter).double()
        w1 = own_constant(inner.weight, "input's weight", rewriter).double()
        (outputs, hidden), inputs = w2.shape, w1.shape[1]
        if inputs * outputs >= hidden * (inputs + outputs):
            raise Refusal(f"the {hidden} features between it and %{first.meta['name']} are a bottleneck")
        weight = w2 @ w1
        bound = float(w2.norm() * w1.norm()) / hidden**0.5
        if bound > _MOST_CANCELLED * float(weight.norm()):
            raise Refusal(f"its weights cancel out those of %{first.meta['name']}: merging would change the rounding")
        bias = _bias_behind(w2, outer, inner, rewriter)
        new_weight, new_bias = _narrow(weight, bias, outer)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    outer.with_constants(rewriter, new_weight, new_bias, [first, inner.weight], arguments(first)["input"])
    erase_unused(rewriter, [first, inner.weight, inner.bias])


def _merge(group: list[AffineLayer], rewriter: Rewriter) -> None:
    """Merge layers of one sum and their adapters into the first, which is a layer."""
    base, others = group[0], group[1:]
    try:
        for layer in group:
            single_user(layer.node)
        shape = own_constant(base.weight, "weight", rewriter).shape
        source = arguments(base.node)["input"]
        weight, bias = torch.zeros((), dtype=torch.float64), None
        for layer in group:
            matrix, added = _through(layer, source, rewriter)
            weight = weight + matrix
            bias = added if bias is None else bias if added is None else bias + added
        new_weight, new_bias = _narrow(weight.reshape(shape), bias, base)
    except Refusal as refusal:
        rewriter.skip(base.node, str(refusal))
        return
    for layer in others:
        parent = next(iter(layer.node.users))
        sibling = next(left for left, right in addends(parent) if right is layer.node)
        rewriter.replace(parent, sibling)
    nodes = [layer.node for layer in others]
    base.with_constants(rewriter, new_weight, new_bias, nodes)
    erase_unused(rewriter, nodes)


def _is_sum(node: fx.Node) -> bool:
    """Tell whether `node` adds two tensors of its own type."""
    return any(left is not right and same_type(left, node) and same_type(right, node) for left, right in addends(node))


def _leaves(top: fx.Node) -> list[fx.Node]:
    """Return the addends of a sum of sums, from left to right."""
    found, stack = [], [top]
    while stack:
        node = stack.pop()
        if node is top or (_is_sum(node) and len(node.users) == 1):
            left, right = next(addends(node))
            stack += [right, left]
        else:
            found.append(node)
    return found


def _plain(node: fx.Node) -> AffineLayer | None:
    """Return `node` as a layer with one group that is not transposed."""
    layer = AffineLayer.of(node) if node.op == "call_function" else None
    return layer if layer is not None and layer.groups == 1 and not layer.transposed else None


def _inner(layer: AffineLayer) -> AffineLayer | None:
    """Return the layer A of an adapter B (A x), if `layer` is one as B: pointwise, and on a layer."""
    given = arguments(layer.node)
    if layer.node.target is not _LINEAR:
        ones = [*layer.weight.meta["val"].shape[2:], *_list(given["stride"])]
        if any(each != 1 for each in ones) or any(each not in (0, "valid", "same") for each in _list(given["padding"])):
            return None
    inner = _plain(given["input"])
    return inner if inner is not None and inner.spatial == layer.spatial else None


def _key(layer: AffineLayer) -> Hashable:
    """Return what layers must have in common for their weights to be added: the input, and how they slide over it."""
    given = arguments(layer.node)
    if layer.node.target is _LINEAR:
        return (given["input"],)
    steps = tuple(tuple(_list(given[name])) for name in ("stride", "padding", "dilation"))
    return (given["input"], *layer.weight.meta["val"].shape[2:], *steps)


def _through(layer: AffineLayer, source: Any, rewriter: Rewriter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight, [outputs, inputs * taps], and bias of a layer on `source`, or of an adapter."""
    matrix = read_constant(layer.weight, "weight", rewriter).double().flatten(1)
    if arguments(layer.node)["input"] is source:
        return matrix, _bias(layer, rewriter)
    inner = _inner(layer)
    assert inner is not None
    reduced = read_constant(inner.weight, "weight", rewriter).double().flatten(1)
    return matrix @ reduced, _bias_behind(matrix, layer, inner, rewriter)


def _bias_behind(
    matrix: torch.Tensor, outer: AffineLayer, inner: AffineLayer, rewriter: Rewriter
) -> torch.Tensor | None:
    """Return the bias of outer(inner(x)); `matrix` is the weight of `outer`."""
    first, second = _bias(inner, rewriter), _bias(outer, rewriter)
    if first is None:
        return second
    return matrix @ first if second is None else matrix @ first + second


def _bias(layer: AffineLayer, rewriter: Rewriter) -> torch.Tensor | None:
    return None if layer.bias is None else read_constant(layer.bias, "bias", rewriter).double()


def _narrow(
    weight: torch.Tensor, bias: torch.Tensor | None, layer: AffineLayer
) -> tuple[torch.Tensor, torch.Tensor | None]:
    dtype = layer.weight.meta["val"].dtype
    return rounded(weight, dtype), None if bias is None else rounded(bias, dtype)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


RULES = (parallel_layers, linear_in_a_row)
