"""Takes fused operators apart, so that pairs of quantize and dequantize can stand between their parts.

1. `burnish.conv_act` becomes a convolution, an addition and an activation.
2. `burnish.linear_act` likewise.
3. A large silu becomes x * sigmoid(x) where integer kernels exist for both parts.
4. `burnish.self_attention` becomes its projection, a linear layer, and `burnish.multi_head_attention`.

Not handled: transposed convolutions, which have no integer kernel anywhere.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter

__all__ = ["layer_apart", "projection_apart", "silu_apart"]

_CONV = find_operator("burnish.conv_act")
_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("aten.relu", {}),
    "sigmoid": ("aten.sigmoid", {}),
    "tanh": ("aten.tanh", {}),
    "silu": ("aten.silu", {}),
    "gelu": ("aten.gelu", {}),
    "gelu_tanh": ("aten.gelu", {"approximate": "tanh"}),
    "hardswish": ("aten.hardswish", {}),
    "hardsigmoid": ("aten.hardsigmoid", {}),
    "leaky_relu": ("aten.leaky_relu", {}),
    "clamp": ("aten.clamp", {}),
}


def layer_apart(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    """Replace `conv_act`, not transposed, or `linear_act` by its parts; return the layer."""
    given = arguments(node)
    residual, activation = given["residual"], given["activation"]
    names: tuple[str, ...]
    if node.target is _CONV:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        target = f"aten.conv{len(given['stride'])}d"
    else:
        names, target = ("input", "weight", "bias"), "aten.linear"
    args = tuple(given[name] for name in names)
    if residual is None and activation == "none":
        return rewriter.replace(node, target, args, {}, same_type=True)
    layer = rewriter.insert(node, target, args, like=node)
    if activation == "none":
        rewriter.replace(node, "aten.add.Tensor", (layer, residual), {}, same_type=True)
        return layer
    y = layer if residual is None else rewriter.insert(node, "aten.add.Tensor", (layer, residual), like=node)
    form, kwargs = _FORMS[activation]
    rewriter.replace(node, form, (y, *given["parameters"]), kwargs, same_type=True)
    return layer


def silu_apart(node: fx.Node, rewriter: Rewriter) -> None:
    """Replace silu by a sigmoid and a product."""
    x = arguments(node)["self"]
    gate = rewriter.insert(node, "aten.sigmoid", (x,), like=node)
    rewriter.replace(node, "aten.mul.Tensor", (x, gate), {}, same_type=True)


def projection_apart(node: fx.Node, rewriter: Rewriter) -> fx.Node:
    """Replace `self_attention` by a linear layer, which is returned, and `multi_head_attention`."""
    given = arguments(node)
    heads, kv_heads = given["heads"], given["kv_heads"]
    size = given["weight"].meta["val"].shape[0] // (heads + 2 * kv_heads)
    layer = rewriter.insert(node, "aten.linear", (given["input"], given["weight"], given["bias"]))
    sizes = [heads * size, kv_heads * size, kv_heads * size]
    split = rewriter.insert(node, "aten.split_with_sizes", (layer, sizes, -1))
    parts = [rewriter.insert(node, operator.getitem, (split, index)) for index in range(3)]
    kwargs = {name: given[name] for name in ("heads", "kv_heads", "scale", "causal")}
    rewriter.replace(node, "burnish.multi_head_attention", (*parts, given["mask"]), kwargs, same_type=True)
    return layer
