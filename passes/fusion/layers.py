"""Rules: A convolution or linear layer takes over the residual sum and the activation behind it.

activation(layer(x) + residual), either of the two being optional, becomes `burnish.conv_act` or `burnish.linear_act`.
The sum joins the layer first, and what has no activation yet may take the one behind it. Of two layers in a sum the
later one takes it: nothing waits for its result.

Not handled: a layer whose result something else reads; a residual of another shape or dtype; an activation whose bounds
are computed; a convolution of an input without a batch, padded by a word, or whose geometry depends on sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import Operator, arguments, find_operator
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import repeated, same_shape, same_type, tensor_of
from burnish.passes.canonical.weights import described, single_user
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_Found = tuple[str, list[float]]
_CONV, _LINEAR = "burnish.conv_act", "burnish.linear_act"
_FUSED = (_CONV, _LINEAR)

# Spatial dimensions, by operator.
_CONVOLUTIONS: dict[Operator, int] = {find_operator(f"aten.conv{n}d"): n for n in (1, 2, 3)}
_CONVOLUTIONS |= {find_operator(f"aten.conv{n}d.padding"): n for n in (1, 2, 3)}
_TRANSPOSED: dict[Operator, int] = {
    find_operator("aten.conv_transpose1d"): 1,
    find_operator("aten.conv_transpose2d.input"): 2,
    find_operator("aten.conv_transpose3d.input"): 3,
}
_LAYERS = {**_CONVOLUTIONS, **_TRANSPOSED, find_operator("aten.linear"): 0}

_ACTIVATIONS: dict[str, Callable[[dict[str, Any]], _Found]] = {
    "aten.relu": lambda _: ("relu", []),
    "aten.relu6": lambda _: ("clamp", [0.0, 6.0]),
    "aten.hardtanh": lambda found: ("clamp", [_number(found["min_val"]), _number(found["max_val"])]),
    "aten.clamp": lambda found: ("clamp", [_number(found["min"], -math.inf), _number(found["max"], math.inf)]),
    "aten.clamp_min": lambda found: ("clamp", [_number(found["min"]), math.inf]),
    "aten.clamp_max": lambda found: ("clamp", [-math.inf, _number(found["max"])]),
    "aten.sigmoid": lambda _: ("sigmoid", []),
    "aten.tanh": lambda _: ("tanh", []),
    "aten.silu": lambda _: ("silu", []),
    "aten.gelu": lambda found: ("gelu_tanh" if found["approximate"] == "tanh" else "gelu", []),
    "aten.hardswish": lambda _: ("hardswish", []),
    "aten.hardsigmoid": lambda _: ("hardsigmoid", []),
    "aten.leaky_relu": lambda found: ("leaky_relu", [_number(found["negative_slope"])]),
}
_BY_TARGET = {find_operator(name): of for name, of in _ACTIVATIONS.items()}
_TENSOR_BOUNDS = ("aten.clamp.Tensor", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor")


@rule("aten.add.Tensor")
def layer_and_residual(node: fx.Node, rewriter: Rewriter) -> None:
    """layer(x) + residual is one operator."""
    found = arguments(node)
    given = (found["self"], found["other"])
    layers = [each for each in given if isinstance(each, fx.Node) and each.target in _LAYERS]
    if not layers or any(tensor_of(each) is None for each in given) or not _floating(node):
        return
    reasons = []
    for layer in sorted(set(layers), reverse=True):
        try:
            _take_residual(node, layer, given[1] if layer is given[0] else given[0], found["alpha"], rewriter)
        except Refusal as refusal:
            reasons.append(str(refusal))
        else:
            return
    rewriter.skip(node, "; ".join(dict.fromkeys(reasons)))


@rule(*_ACTIVATIONS, *_TENSOR_BOUNDS)
def layer_and_activation(node: fx.Node, rewriter: Rewriter) -> None:
    """activation(layer(x)) is one operator, and so is the activation of a layer with a residual."""
    layer = arguments(node)["self"]
    if not isinstance(layer, fx.Node) or not _floating(node) or not same_type(node, layer):
        return
    is_fused = calls(layer, *_FUSED) and arguments(layer)["activation"] == "none"
    if not is_fused and layer.target not in _LAYERS:
        return
    try:
        single_user(layer)
        if node.target not in _BY_TARGET:
            raise Refusal("its bounds are tensors")
        activation, parameters = _BY_TARGET[node.target](arguments(node))
        operator, args, kwargs = (layer.target, layer.args, dict(layer.kwargs)) if is_fused else _as_fused(layer)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    kwargs["activation"] = activation
    if parameters:
        kwargs["parameters"] = parameters
    rewriter.replace(node, operator, args, kwargs, origins=[layer], same_type=True)
    erase_unused(rewriter, [layer])


def _take_residual(node: fx.Node, layer: fx.Node, residual: fx.Node, alpha: Any, rewriter: Rewriter) -> None:
    """Replace the sum `node`.

    Raises:
        Refusal: the layer cannot take it.
    """
    if alpha != 1:
        raise Refusal("it scales what it adds")
    if residual is layer:
        raise Refusal(f"it adds {described(layer)} to itself")
    single_user(layer)
    left, right = layer.meta["val"], residual.meta["val"]
    if left.dtype != right.dtype:
        raise Refusal(f"its addends are {_dtype(left)} and {_dtype(right)}")
    if not same_shape(left.shape, right.shape):
        raise Refusal("its addends have different shapes")
    operator, args, kwargs = _as_fused(layer)
    rewriter.replace(node, operator, args, {**kwargs, "residual": residual}, origins=[layer], same_type=True)
    erase_unused(rewriter, [layer])


def _as_fused(layer: fx.Node) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the operator, arguments and keyword arguments of the fused form of a layer.

    Raises:
        Refusal: it has none.
    """
    found = arguments(layer)
    args = (found["input"], found["weight"], found["bias"])
    if layer.target not in _CONVOLUTIONS and layer.target not in _TRANSPOSED:
        return _LINEAR, args if args[2] is not None else args[:2], {}
    rank = _LAYERS[layer.target]
    if isinstance(found["padding"], str):
        raise Refusal(f"{described(layer)} is padded by a word, not by numbers")
    if found["input"].meta["val"].dim() != rank + 2:
        raise Refusal(f"{described(layer)} has an input without a batch dimension")
    stride, padding, dilation, outside = (
        _geometry(layer, found.get(name, 0), rank) for name in ("stride", "padding", "dilation", "output_padding")
    )
    groups = found["groups"]
    if type(groups) is not int:
        raise Refusal(f"{described(layer)} has a geometry that depends on sizes")
    kwargs: dict[str, Any] = {"transposed": True} if layer.target in _TRANSPOSED else {}
    if any(outside):
        kwargs["output_padding"] = outside
    return _CONV, (*args, stride, padding, dilation, groups), kwargs


def _geometry(layer: fx.Node, value: Any, rank: int) -> list[int]:
    values = repeated(value, rank)
    if any(type(each) is not int for each in values):
        raise Refusal(f"{described(layer)} has a geometry that depends on sizes")
    return values


def _number(value: Any, absent: float = math.nan) -> float:
    if value is None:
        return absent
    if type(value) not in (int, float):
        raise Refusal("its bounds or its slope are computed")
    return float(value)


def _floating(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.is_floating_point()


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


RULES = (layer_and_residual, layer_and_activation)
