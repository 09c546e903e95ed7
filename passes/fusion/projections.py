"""Rules: Linear layers that read the same input merge into one, where nothing has to be split again.

The projections of query, key and value go into `burnish.self_attention`, as three layers of one input or as the parts
of one; layers (convolutions too) whose results are concatenated become one layer.

Not handled: projections with something between them and the attention (a rotary embedding), cross-attention, a value
whose heads have another size; weights that are computed or shared, unless one layer holds query, key and value in
order. Layers on one input that are not joined again stay: a split afterwards copies what it gives, which costs ONNX
Runtime more than the larger product saves.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.weights import described, own_constant, single_user
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_LINEAR = find_operator("aten.linear")
_NAMES = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive outputs of a linear layer.

    Attributes:
        node: what holds them.
        layer: the layer.
        start, stop: which outputs.
    """

    node: fx.Node
    layer: fx.Node
    start: int
    stop: int


@rule("burnish.multi_head_attention")
def self_attention(node: fx.Node, rewriter: Rewriter) -> None:
    """multi_head_attention whose query, key and value are linear in one input is self_attention of that input."""
    given = arguments(node)
    try:
        parts = [_part(given[name], name) for name in _NAMES]
        layers = list(dict.fromkeys(part.layer for part in parts))
        if any(AffineLayer.of(layer) is None for layer in layers):
            raise Refusal("a projection has a bias that is no vector of its outputs")
        source = arguments(layers[0])["input"]
        if any(arguments(layer)["input"] is not source for layer in layers):
            raise Refusal("its query, key and value are projections of different inputs")
        heads, kv_heads = given["heads"], given["kv_heads"]
        sizes = [
            (part.stop - part.start) / count for part, count in zip(parts, (heads, kv_heads, kv_heads), strict=True)
        ]
        if len(set(sizes)) > 1:
            raise Refusal(
                f"the heads of its query, key and value have {', '.join(f'{size:g}' for size in sizes)} features"
            )
        _check_readers(node, parts, layers)
        weight, bias = _joined(node, parts, rewriter)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    args = (source, weight, bias, given["mask"])
    kwargs = {name: given[name] for name in ("heads", "kv_heads", "scale", "causal")}
    nodes = [part.node for part in parts]
    rewriter.replace(node, "burnish.self_attention", args, kwargs, origins=[*nodes, *layers], same_type=True)
    _clean(rewriter, nodes, layers)


@rule("aten.cat")
def concatenated_layers(node: fx.Node, rewriter: Rewriter) -> None:
    """A concatenation, along the channels, of layers of one kind on one input is one layer."""
    given = arguments(node)
    layers = [AffineLayer.of(each) if each.op == "call_function" else None for each in given["tensors"]]
    if len(layers) < 2 or any(layer is None for layer in layers):
        return
    found = [layer for layer in layers if layer is not None]
    first, rank = found[0], node.meta["val"].dim()
    if first.groups != 1 or first.transposed or any(layer.weight.op != "get_attr" for layer in found):
        return
    if any(_kind(layer) != _kind(first) for layer in found):
        return
    try:
        if given["dim"] % rank != rank - first.spatial - 1:
            raise Refusal("it concatenates other dimensions than the channels of its layers")
        for layer in found:
            single_user(layer.node)
        if len({layer.node for layer in found}) < len(found):
            raise Refusal("it repeats a layer")
        constants = [_constants(layer.node, rewriter) for layer in found]
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    nodes = [layer.node for layer in found]
    weight, bias = _store(node, nodes, [each[0] for each in constants], [each[1] for each in constants], rewriter)
    kwargs = {key: value for key, value in nodes[0].kwargs.items() if key not in ("input", "weight", "bias")}
    args = (arguments(nodes[0])["input"], weight, bias, *nodes[0].args[3:])
    rewriter.replace(node, nodes[0].target, args, kwargs, origins=nodes, same_type=True)
    _clean(rewriter, [], nodes)


@rule("aten.linear")
def linear_beside(node: fx.Node, rewriter: Rewriter) -> None:
    """Say that layers on one input stay (at the first of them)."""
    source = arguments(node)["input"]
    readers = iter(source.users)
    if next(readers) is node and any(each.target is _LINEAR and each.args[0] is source for each in readers):
        rewriter.skip(node, "another layer reads its input, but merging would need a split")


def _part(value: fx.Node, name: str) -> _Part:
    """Return `value` as a part of a linear layer's result.

    Raises:
        Refusal: it is none.
    """
    if calls(value, "aten.linear"):
        return _Part(value, value, 0, _width(value))
    if value.target is operator.getitem and calls(value.args[0], "aten.split_with_sizes"):
        split: Any = value.args[0]
        found, index = arguments(split), int(value.args[1])  # type: ignore[arg-type]
        if calls(found["self"], "aten.linear") and _is_last(found):
            sizes = found["split_sizes"]
            return _Part(value, found["self"], sum(sizes[:index]), sum(sizes[: index + 1]))
    if calls(value, "aten.slice.Tensor"):
        found = arguments(value)
        if calls(found["self"], "aten.linear") and _is_last(found) and found["step"] == 1:
            start = found["start"] or 0
            start = start + _width(found["self"]) if start < 0 else start
            return _Part(value, found["self"], start, start + _width(value))
    made = described(value) if value.op == "call_function" else f"the input %{name_of(value)}"
    raise Refusal(f"its {name} is made by {made}, not by a linear layer")


def _is_last(found: dict[str, Any]) -> bool:
    """Tell whether an operator with these arguments works on the last dimension."""
    rank = found["self"].meta["val"].dim()
    return bool(found["dim"] % rank == rank - 1)


def _width(value: fx.Node) -> int:
    width = value.meta["val"].shape[-1]
    if not isinstance(width, int):
        raise Refusal(f"{described(value)} has a dynamic number of features")
    return width


def _check_readers(node: fx.Node, parts: list[_Part], layers: list[fx.Node]) -> None:
    """Raise Refusal where something else than `node` reads what `parts` hold, or twice the same."""
    nodes = {part.node for part in parts}
    if len(nodes) < len(parts):
        raise Refusal("two of its query, key and value are one")
    for each in nodes:
        single_user(each)
    for layer in layers:
        readers = {reader for user in layer.users for reader in (user.users if _splits(user) else (user,))}
        if layer not in nodes and not readers.issubset(nodes):
            raise Refusal(f"{described(layer)} is read by something else too")


def _splits(node: fx.Node) -> bool:
    return calls(node, "aten.split_with_sizes")


def _joined(node: fx.Node, parts: list[_Part], rewriter: Rewriter) -> tuple[fx.Node, fx.Node | None]:
    """Return weight and bias of one layer that makes all parts, one after another."""
    first, starts, stops = parts[0].layer, [part.start for part in parts], [part.stop for part in parts]
    if all(part.layer is first for part in parts) and starts == [0, *stops[:-1]] and stops[-1] == _width(first):
        given = arguments(first)
        return given["weight"], given["bias"]
    weights: list[torch.Tensor] = []
    biases: list[torch.Tensor | None] = []
    for part in parts:
        weight, bias = _constants(part.layer, rewriter)
        weights.append(weight[part.start : part.stop])
        biases.append(None if bias is None else bias[part.start : part.stop])
    return _store(node, [part.layer for part in parts], weights, biases, rewriter)


def _constants(layer: fx.Node, rewriter: Rewriter) -> tuple[torch.Tensor, torch.Tensor | None]:
    found = arguments(layer)
    weight = own_constant(found["weight"], f"layer %{name_of(layer)}'s weight", rewriter)
    bias = None if found["bias"] is None else read_constant(found["bias"], f"layer %{name_of(layer)}'s bias", rewriter)
    return weight, bias


def _store(
    node: fx.Node,
    layers: list[fx.Node],
    weights: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    rewriter: Rewriter,
) -> tuple[fx.Node, fx.Node | None]:
    """Return the constants that hold `weights` and `biases`, zeros for None, one after another."""
    name, graph, origins = name_of(node), node.graph, [arguments(layer)["weight"] for layer in layers]
    weight = rewriter.set_constant(graph, f"{name}.weight", torch.cat(weights), origins)
    if all(bias is None for bias in biases):
        return weight, None
    filled = [
        rows.new_zeros(rows.shape[0]) if bias is None else bias for rows, bias in zip(weights, biases, strict=True)
    ]
    return weight, rewriter.set_constant(graph, f"{name}.bias", torch.cat(filled), origins)


def _kind(layer: AffineLayer) -> tuple[Any, ...]:
    """Return what layers must have in common to be one with more outputs."""
    given = arguments(layer.node)
    rest = [value for key, value in given.items() if key not in ("weight", "bias")]
    return (layer.node.target, *layer.weight.meta["val"].shape[1:], *rest)


def _clean(rewriter: Rewriter, parts: list[fx.Node], layers: list[fx.Node]) -> None:
    constants = [arguments(layer)[name] for layer in layers for name in ("weight", "bias")]
    erase_unused(rewriter, [*parts, *layers])
    erase_unused(rewriter, [each for each in constants if each is not None and each.op == "get_attr"])


RULES = (self_attention, concatenated_layers, linear_beside)
