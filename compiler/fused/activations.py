"""Activations by name, for operators that end in one, and those that ATen does not have.

`activation` and `parameters` are arguments of `burnish::conv_act` and `burnish::linear_act`:

    none, relu, sigmoid, tanh, silu, gelu, gelu_tanh, hardswish, hardsigmoid    no parameters
    leaky_relu                                                                  the slope below zero
    clamp                                                                       the lower and the upper bound
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from burnish.compiler.fused.registry import fused_operator

__all__ = ["ACTIVATIONS", "activate", "quick_gelu"]

_aten = torch.ops.aten
_Activation = Callable[..., Tensor]

ACTIVATIONS: dict[str, tuple[int, _Activation]] = {
    "none": (0, lambda x: x),
    "relu": (0, _aten.relu.default),
    "sigmoid": (0, _aten.sigmoid.default),
    "tanh": (0, _aten.tanh.default),
    "silu": (0, _aten.silu.default),
    "gelu": (0, _aten.gelu.default),
    "gelu_tanh": (0, lambda x: _aten.gelu.default(x, approximate="tanh")),
    "hardswish": (0, _aten.hardswish.default),
    "hardsigmoid": (0, _aten.hardsigmoid.default),
    "leaky_relu": (1, _aten.leaky_relu.default),
    "clamp": (2, _aten.clamp.default),
}
"""Number of parameters, and the function, of every activation."""


def activate(x: Tensor, activation: str, parameters: Sequence[float]) -> Tensor:
    """Apply an activation to a tensor of any shape.

    Raises:
        ValueError: no activation has this name, or it takes another number of parameters.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"no activation is called {activation!r}; there are {', '.join(ACTIVATIONS)}")
    count, function = ACTIVATIONS[activation]
    if len(parameters) != count:
        raise ValueError(f"activation {activation!r} takes {count} parameters, not {len(parameters)}")
    return function(x, *parameters)


@fused_operator("quick_gelu(Tensor input, float alpha=1.702) -> Tensor")
def quick_gelu(input: Tensor, alpha: float = 1.702) -> Tensor:
    """Return x * sigmoid(alpha * x), any shape and floating dtype (Hendrycks & Gimpel, arXiv 1606.08415, section 2)."""
    return input * torch.sigmoid(input * alpha)
