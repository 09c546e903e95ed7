"""Fused layers as TorchScript: the layer, then the residual and the activation in place, on the result's own memory.

That is exact to the bit, runs on every libtorch, and spares a fresh allocation for each step. All other operators of
the `burnish` namespace are inlined before.

Not handled: a residual of another type than the result, and integers, which are inlined too. The kernels of oneDNN are
no part of the source, for a libtorch without oneDNN cannot load a file that names them: see `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from burnish.backends.torchscript.literals import literal
from burnish.compiler.cost_numbers import shape_of
from burnish.compiler.operators import arguments, find_operator

__all__ = ["fused_expression", "has_expression"]

_CONV = find_operator("burnish.conv_act")
_LINEAR = find_operator("burnish.linear_act")
# Function and further arguments, by activation.
_IN_PLACE = {
    "relu": "relu_({})",
    "sigmoid": "sigmoid_({})",
    "tanh": "tanh_({})",
    "silu": "silu_({})",
    "gelu": "gelu_({})",
    "gelu_tanh": 'gelu_({}, approximate="tanh")',
    "hardswish": "hardswish_({})",
    "hardsigmoid": "hardsigmoid_({})",
    "leaky_relu": "leaky_relu_({}, {})",
    "clamp": "clamp_({}, {}, {})",
}


def has_expression(node: fx.Node) -> bool:
    """Tell whether `fused_expression` takes `node`."""
    if node.target not in (_CONV, _LINEAR):
        return False
    found, result = arguments(node), node.meta["val"]
    # The layer itself has the dtype of its input: what is added or applied in place must not promote it.
    if not result.dtype.is_floating_point or result.dtype != found["input"].meta["val"].dtype:
        return False
    if found["residual"] is None:
        return True
    residual = found["residual"].meta["val"]
    return bool(result.dtype == residual.dtype and shape_of(result) == shape_of(residual))


def fused_expression(node: fx.Node, reference: Callable[[fx.Node], str]) -> str:
    """Return the expression of a fused layer."""
    found = arguments(node)

    def write(value: Any, kind: str = "") -> str:
        return literal(value, kind, reference)

    operands = ", ".join(write(found[name]) for name in ("input", "weight", "bias"))
    if node.target is _CONV:
        outside = list(found["output_padding"]) or [0] * len(found["stride"])
        geometry = [found["stride"], found["padding"], found["dilation"], found["transposed"], outside, found["groups"]]
        text = f"torch.ops.aten.convolution({operands}, {', '.join(write(each) for each in geometry)})"
    else:
        text = f"torch.ops.aten.linear({operands})"
    if found["residual"] is not None:
        text = f"torch.ops.aten.add_({text}, {write(found['residual'])})"
    if found["activation"] != "none":
        parameters = [write(each, "float") for each in found["parameters"]]
        text = f"torch.ops.aten.{_IN_PLACE[found['activation']].format(text, *parameters)}"
    return text
