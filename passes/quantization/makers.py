"""What makes a value and what reads it, for factors by channel that move from the one to the others.

A value divided by s > 0, channel by channel, and the weights behind it multiplied by s are the same real function.
Layers are convolutions, linear layers and their fused forms. A value may be made by

1. a layer,
2. a norm over the channels, with the sum before it or not,
3. either, seen through what a positive factor passes: relu, leaky relu, pools, zeros around, one side of a product, a
   part of a split, the values of an attention.

A clamp at a positive number (relu6) passes a factor as long as the number is not reached; see `Maker.clamp`.

Not handled: a value that anything but layers reads; clamps at a negative number; reshapes; half precision; a weight
that several operators share.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.weights import WIDE, described, own_constant, single_user

__all__ = ["Clamp", "Maker", "channel_dim", "layer_of", "maker_of", "readers_of"]

_CONV_ACT, _SELF_ATTENTION = find_operator("burnish.conv_act"), find_operator("burnish.self_attention")
_FUSED = frozenset({_CONV_ACT, find_operator("burnish.linear_act"), _SELF_ATTENTION})
_NORMS = frozenset(find_operator(name) for name in ("aten.layer_norm", "aten.rms_norm", "burnish.embedding_layer_norm"))
_SKIP_NORMS = frozenset(find_operator(f"burnish.{name}") for name in ("skip_layer_norm", "skip_rms_norm"))
_ELEMENTWISE = frozenset(find_operator(f"aten.{name}") for name in ("relu", "leaky_relu", "clone", "contiguous"))
# Pools, with the number of dimensions at the end that they pool over.
_POOLS: dict[Any, int] = {
    find_operator(f"aten.{name}{spatial}d"): spatial
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool")
    for spatial in (1, 2, 3)
}
_CLAMPS: dict[Any, str] = {find_operator(f"aten.{name}"): name for name in ("relu6", "hardtanh", "clamp")}
_MUL, _MEAN = find_operator("aten.mul.Tensor"), find_operator("aten.mean.dim")
_PAD = find_operator("aten.constant_pad_nd")
_ATTENTION, _SPLIT = find_operator("burnish.multi_head_attention"), find_operator("aten.split_with_sizes")
# Other weights leave no room for a factor.
_LEAST, _MOST = 1e-20, 1e6


@dataclass(frozen=True, slots=True)
class Clamp:
    """A node whose result, all channels alike, is at most a positive number."""

    node: fx.Node
    most: float


@dataclass(frozen=True, slots=True)
class Maker:
    """What makes a value.

    Attributes:
        origin: a layer, or the node of a norm.
        rows: for every channel of the value, the row of the layer or the feature of the norm; int64 [C].
        clamp: what clamps at a positive number on the way, the first of several; None: all factors pass.
    """

    origin: AffineLayer | fx.Node
    rows: torch.Tensor
    clamp: Clamp | None = None

    def unclamped(self) -> Maker:
        """Return the same.

        Raises:
            Refusal: a clamp on the way would be reached elsewhere.
        """
        if self.clamp is not None:
            raise Refusal(f"{described(self.clamp.node)} clamps at {self.clamp.most:g}, one number for all channels")
        return self

    def pooled(self, reach: torch.Tensor) -> torch.Tensor:
        """Return for every channel the largest of `reach`, [C], over the channels that share its row."""
        most = torch.zeros(int(self.rows.max()) + 1, dtype=reach.dtype).scatter_reduce(0, self.rows, reach, "amax")
        return most[self.rows]


def layer_of(node: fx.Node) -> AffineLayer | None:
    """Return `node` as a layer, fused ones included: of `burnish.self_attention` it is the projection."""
    if node.target not in _FUSED:
        return AffineLayer.of(node)
    given = arguments(node)
    spatial = len(given["stride"]) if node.target is _CONV_ACT else 0
    groups, transposed = given.get("groups", 1), given.get("transposed", False)
    return AffineLayer(node, given["weight"], given["bias"], groups, transposed, spatial)


def channel_dim(layer: AffineLayer) -> int:
    """Return the dimension, from 0, that holds the channels of what `layer` reads and of what it gives."""
    return int(layer.node.meta["val"].dim()) - 1 - layer.spatial


def readers_of(value: fx.Node, rewriter: Rewriter) -> list[AffineLayer]:
    """Return the layers that read `value`.

    Raises:
        Refusal: something else reads it too, or a weight cannot be replaced.
    """
    found = []
    for user in value.users:
        layer = layer_of(user) if user.op == "call_function" else None
        if user.op == "output":
            raise Refusal(f"its input {described(value)} is an output of the graph too")
        if layer is None or any(each is value for name, each in arguments(user).items() if name != "input"):
            raise Refusal(f"its input {described(value)} is read by {described(user)} too")
        _check(layer, rewriter)
        found.append(layer)
    return found


def maker_of(value: fx.Node, dim: int, rewriter: Rewriter) -> Maker:
    """Return what makes `value`, whose channels are dimension `dim`, counted from 0.

    Raises:
        Refusal: nothing that could take a factor for every channel.
    """
    count = value.meta["val"].shape[dim]
    assert isinstance(count, int), "the channels of what a constant weight is applied to are known"
    if value.target is operator.getitem:
        return _part(value, dim, count, rewriter)
    layer = layer_of(value)
    if layer is not None:
        return _layer(layer, dim, count, rewriter)
    if value.target in _NORMS:
        return _norm(value, value, dim, count, rewriter)
    given = arguments(value) if value.op == "call_function" else {}
    if value.target is _ATTENTION:
        inner = _behind(given["value"], given["value"].meta["val"].dim() - 1, rewriter)
        return replace(inner, rows=inner.rows[_heads(count, given["heads"], given["kv_heads"])])
    if value.target is _MUL:
        return _product(value, given["self"], given["other"], dim, rewriter)
    if value.target is _MEAN and given["dim"] and given["dtype"] is None:
        rank = given["self"].meta["val"].dim()
        gone = {each % rank for each in given["dim"]}
        kept = dim if given["keepdim"] else [each for each in range(rank) if each not in gone][dim]
        if kept not in gone:
            return _behind(given["self"], kept, rewriter)
    if value.target in _CLAMPS:
        clamp, inner = _clamp(value, _CLAMPS[value.target], given), _behind(given["self"], dim, rewriter)
        return inner if inner.clamp is not None else replace(inner, clamp=clamp)
    if value.target is _PAD and not given["value"] and not any(given["pad"][2 * (value.meta["val"].dim() - 1 - dim) :]):
        return _behind(given["self"], dim, rewriter)
    if value.target in _ELEMENTWISE:
        return _behind(given["self"], dim, rewriter)
    if value.target in _POOLS and dim < value.meta["val"].dim() - _POOLS[value.target]:
        return _behind(given["self"], dim, rewriter)
    if value.op != "call_function":
        raise Refusal(f"%{name_of(value)} is an input or a constant: nothing before it could be scaled")
    raise Refusal(f"{described(value)} passes no factor on, and has no weights that could be scaled")


def _behind(value: Any, dim: int, rewriter: Rewriter) -> Maker:
    """Return the maker of `value`, which only one operator may read."""
    single_user(value)
    return maker_of(value, dim, rewriter)


def _layer(layer: AffineLayer, dim: int, count: int, rewriter: Rewriter) -> Maker:
    _check(layer, rewriter)
    node, given = layer.node, arguments(layer.node)
    if dim != channel_dim(layer):
        raise Refusal(f"the channels of {described(node)} are another dimension")
    if layer.bias is not None:
        _read(layer.bias, "bias", node, rewriter)
    if node.target is _SELF_ATTENTION:
        heads, kv_heads = given["heads"], given["kv_heads"]
        return Maker(layer, count + count // heads * kv_heads + _heads(count, heads, kv_heads))
    if given.get("residual") is not None:
        raise Refusal(f"{described(node)} adds a residual, which would have to be scaled too")
    activation, clamp = given.get("activation", "none"), None
    if activation == "clamp":
        clamp = _clamp(node, "clamp", dict(zip(("min", "max"), given["parameters"], strict=True)))
    elif activation not in ("none", "relu", "leaky_relu"):
        raise Refusal(f"{described(node)} ends in {activation}, which passes no factor on")
    return Maker(layer, torch.arange(count), clamp)


def _part(value: fx.Node, dim: int, count: int, rewriter: Rewriter) -> Maker:
    """Return the maker of one result of several: of a norm of a sum, or of a split of channels."""
    whole, index = value.args[:2]
    assert isinstance(whole, fx.Node) and isinstance(index, int)
    if sum(user.args[1] == index for user in whole.users) > 1:
        raise Refusal(f"a result of {described(whole)} is taken twice")
    if whole.target in _SKIP_NORMS and index == 0:
        return _norm(whole, value, dim, count, rewriter)
    given = arguments(whole)
    if whole.target is not _SPLIT or given["dim"] % value.meta["val"].dim() != dim:
        raise Refusal(f"{described(whole)} passes no factor on, and has no weights that could be scaled")
    inner = _behind(given["self"], dim, rewriter)
    start = sum(given["split_sizes"][:index])
    return replace(inner, rows=inner.rows[start : start + count])


def _norm(node: fx.Node, value: fx.Node, dim: int, count: int, rewriter: Rewriter) -> Maker:
    given = arguments(node)
    if list(given["normalized_shape"]) != [count] or dim != value.meta["val"].dim() - 1:
        raise Refusal(f"{described(node)} normalizes more than the channels")
    for name in ("weight", "bias"):
        if given.get(name) is not None:
            _read(given[name], name, node, rewriter)
    if value.meta["val"].dtype not in WIDE:
        raise Refusal(f"{described(node)} computes in half precision, where new weights would be rounded anew")
    return Maker(node, torch.arange(count))


def _product(node: fx.Node, left: Any, right: Any, dim: int, rewriter: Rewriter) -> Maker:
    """Return the maker of one operand of a product; the factor goes there, and the other one stays."""
    shape, reasons = node.meta["val"].shape, []
    for each in (left, right):
        found = each.meta["val"] if isinstance(each, fx.Node) else None
        if left is right or not isinstance(found, torch.Tensor) or found.dim() != len(shape):
            continue
        if isinstance(found.shape[dim], int) and found.shape[dim] == shape[dim]:
            try:
                return _behind(each, dim, rewriter)
            except Refusal as refusal:
                reasons.append(str(refusal))
    raise Refusal("; ".join(reasons) or f"no side of {described(node)} could be scaled alone")


def _check(layer: AffineLayer, rewriter: Rewriter) -> None:
    """Raise Refusal where the weight of a layer cannot be replaced by a scaled one."""
    node = layer.node
    weight = _read(layer.weight, "weight", node, rewriter, own_constant)
    if weight.dtype not in WIDE:
        raise Refusal(f"{described(node)} computes in half precision, where new weights would be rounded anew")
    if layer.spatial and not layer.has_batch:
        raise Refusal(f"{described(node)} has no batch dimension")


def _read(
    value: fx.Node,
    what: str,
    node: fx.Node,
    rewriter: Rewriter,
    read: Callable[[Any, str, Rewriter], torch.Tensor] = read_constant,
) -> torch.Tensor:
    try:
        found = read(value, what, rewriter)
    except Refusal as refusal:
        raise Refusal(f"{described(node)} cannot be scaled: {refusal}") from None
    most = float(found.abs().max()) if found.numel() else 0.0
    if most and not _LEAST < most < _MOST:
        raise Refusal(f"the {what} of {described(node)} is not finite, or too large or small to be scaled")
    return found


def _clamp(node: fx.Node, name: str, given: dict[str, Any]) -> Clamp | None:
    """Return the clamp that `node` is; None where it has no bound that a factor would move.

    Raises:
        Refusal: it has one that is not positive.
    """
    known = {"relu6": (0.0, 6.0), "hardtanh": (given.get("min_val"), given.get("max_val"))}
    low, high = known.get(name, (given.get("min"), given.get("max")))
    free = (None, 0, inf, -inf)
    if low not in free or (high not in free and high < 0):
        raise Refusal(f"{described(node)} clamps at {low if low not in free else high:g}, one number for all channels")
    return None if high in free else Clamp(node, float(high))


def _heads(count: int, heads: int, kv_heads: int) -> torch.Tensor:
    """Return for every feature of the result of an attention the feature of the values that it comes from."""
    size = count // heads
    index = torch.arange(count)
    return index // size // (heads // kv_heads) * size + index % size
