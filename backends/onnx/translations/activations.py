"""Activations, alone and at the end of `burnish::conv_act` and `burnish::linear_act`.

ONNX Runtime has most of them for float32 only: in float64 they are spelled out. Not handled there: elu, selu and celu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from burnish.backends.onnx.translations.builder import Builder

__all__ = ["activate", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "quick_gelu", "silu", "softplus"]

_PLAIN = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
_GELU_SINCE = 20
_DOUBLE = ir.DataType.DOUBLE


def activate(op: Builder, x: Any, activation: str, parameters: Sequence[float], dtype: Any) -> Any:
    """Apply an activation of `burnish.compiler.fused.activations.ACTIVATIONS`.

    Args:
        dtype: of `x`, which has no type yet.
    """
    if activation == "none":
        return x
    if activation in _PLAIN:
        return op(_PLAIN[activation], x)
    if activation == "hardswish":
        return _hardswish(op, x, dtype)
    if activation == "hardsigmoid":
        return _hardsigmoid(op, x, dtype)
    if activation == "leaky_relu":
        return _leaky_relu(op, x, float(parameters[0]), dtype)
    if activation == "clamp":
        return op("Clip", x, op.number(parameters[0], dtype), op.number(parameters[1], dtype))
    if activation == "silu":
        return op("Mul", x, op("Sigmoid", x))
    if activation == "gelu_tanh":
        return _gelu(op, x, dtype, "tanh")
    assert activation == "gelu", f"{activation} passed the operator's own check"
    return _gelu(op, x, dtype, "none")


def gelu(op: Builder, input: Any, approximate: str = "none") -> Any:
    """Gelu. ONNX Runtime's own kernel for float64 has the constants of the tanh form in float32."""
    return _gelu(op, input, input.dtype, approximate)


def hardswish(op: Builder, input: Any) -> Any:
    """HardSwish: x * min(max(x + 3, 0), 6) / 6."""
    return _hardswish(op, input, input.dtype)


def hardsigmoid(op: Builder, input: Any) -> Any:
    """HardSigmoid: min(max(x + 3, 0), 6) / 6."""
    return _hardsigmoid(op, input, input.dtype)


def leaky_relu(op: Builder, input: Any, negative_slope: float = 0.01) -> Any:
    """LeakyRelu: x, or x * slope where negative."""
    return _leaky_relu(op, input, float(negative_slope), input.dtype)


def softplus(op: Builder, input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """Log(1 + exp(beta x)) / beta; x where beta x is above the threshold."""
    dtype = input.dtype
    scaled = input if beta == 1 else op("Mul", input, op.number(beta, dtype))
    y = _softplus(op, scaled, dtype)
    y = y if beta == 1 else op("Div", y, op.number(beta, dtype))
    return op("Where", op("Greater", scaled, op.number(threshold, dtype)), input, y)


def mish(op: Builder, input: Any) -> Any:
    """X * tanh(log(1 + exp(x)))."""
    return op("Mul", input, op("Tanh", _softplus(op, input, input.dtype)))


def quick_gelu(op: Builder, input: Any, alpha: float = 1.702) -> Any:
    """X * sigmoid(alpha * x)."""
    if op.may_use_contrib(input):
        return op.contrib("QuickGelu", input, alpha=float(alpha))
    scaled = input if alpha == 1.0 else op("Mul", input, op.number(alpha, input.dtype))
    return op("Mul", input, op("Sigmoid", scaled))


def silu(op: Builder, self: Any) -> Any:
    """X * sigmoid(x), one kernel in ONNX Runtime, which does not join the two itself behind a dequantization."""
    return quick_gelu(op, self, 1.0)


def _hardswish(op: Builder, x: Any, dtype: Any) -> Any:
    return op("HardSwish", x) if dtype != _DOUBLE else op("Mul", x, _hardsigmoid(op, x, dtype))


def _hardsigmoid(op: Builder, x: Any, dtype: Any) -> Any:
    if dtype != _DOUBLE:
        return op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    raised = op("Add", x, op.number(3.0, dtype))
    return op("Div", op("Clip", raised, op.number(0.0, dtype), op.number(6.0, dtype)), op.number(6.0, dtype))


def _leaky_relu(op: Builder, x: Any, slope: float, dtype: Any) -> Any:
    if dtype != _DOUBLE:
        return op("LeakyRelu", x, alpha=slope)
    negative = op("Less", x, op.number(0.0, dtype))
    return op("Where", negative, op("Mul", x, op.number(slope, dtype)), x)


def _softplus(op: Builder, x: Any, dtype: Any) -> Any:
    if dtype != _DOUBLE:
        return op("Softplus", x)
    # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which cannot overflow.
    small = op("Log", op("Add", op("Exp", op("Neg", op("Abs", x))), op.number(1.0, dtype)))
    return op("Add", op("Relu", x), small)


def _gelu(op: Builder, x: Any, dtype: Any, approximate: str) -> Any:
    if op.opset >= _GELU_SINCE and not (dtype == _DOUBLE and approximate == "tanh"):
        return op("Gelu", x, approximate=approximate)
    half, one = op.number(0.5, dtype), op.number(1.0, dtype)
    if approximate == "tanh":
        cube = op("Mul", op("Mul", op("Mul", x, x), x), op.number(0.044715, dtype))
        inner = op("Tanh", op("Mul", op("Add", x, cube), op.number(math.sqrt(2 / math.pi), dtype)))
    else:
        inner = op("Erf", op("Mul", x, op.number(math.sqrt(0.5), dtype)))
    return op("Mul", op("Mul", x, half), op("Add", inner, one))
