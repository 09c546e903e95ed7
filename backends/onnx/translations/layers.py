"""Convolutions, `burnish::conv_act`, `burnish::linear_act`, `burnish::quick_gelu`, means and sizes.

ONNX Runtime joins Conv, a sum and most activations by itself when it loads a file, also in its blocked layout, so the
standard operators are written for all dialects. Only x * sigmoid(a x) has an operator of ONNX Runtime's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from burnish.backends.onnx.translations.builder import Builder
from burnish.backends.onnx.translations.quantized import integer_product

__all__ = ["activate", "conv_act", "convolution", "element_count", "linear", "linear_act", "mean", "quick_gelu"]

_PLAIN = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish"}
_GELU_SINCE = 20


def conv_act(
    op: Builder,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
    residual: Any = None,
    activation: str = "none",
    parameters: Sequence[float] = (),
) -> Any:
    """Conv or ConvTranspose, Add, and the activation."""
    y = op(
        "ConvTranspose" if transposed else "Conv",
        input,
        weight,
        bias,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        output_padding=list(output_padding) if transposed and any(output_padding) else None,
    )
    y = y if residual is None else op("Add", y, residual)
    return activate(op, y, activation, parameters, input.dtype)


def convolution(
    op: Builder,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """Conv over 1, 2 or 3 dimensions; an input without a batch gets one for the while."""
    spatial = len(weight.shape) - 2
    stride, padding, dilation = ([*each] * (spatial if len(each) == 1 else 1) for each in (stride, padding, dilation))
    if len(input.shape) == spatial + 2:
        return conv_act(op, input, weight, bias, stride, padding, dilation, groups)
    batch = op("Unsqueeze", input, op.integers(0))
    batch.type = input.type
    return op("Squeeze", conv_act(op, batch, weight, bias, stride, padding, dilation, groups), op.integers(0))


def mean(op: Builder, input: Any, dim: Sequence[int] | None, keepdim: bool = False, dtype: int | None = None) -> Any:
    """ReduceMean; GlobalAveragePool, which keeps ONNX Runtime's blocked layout, over all of a feature map."""
    rank = len(input.shape)
    axes = sorted(each % rank for each in dim) if dim else list(range(rank))
    x = input if dtype in (None, -1) else op("Cast", input, to=dtype)
    double = ir.DataType.DOUBLE in (input.dtype, dtype)  # ONNX Runtime pools float32 only
    if not double and rank in (4, 5) and axes == list(range(2, rank)):
        pooled = op("GlobalAveragePool", x)
        return pooled if keepdim else op("Squeeze", pooled, op.integers(*axes))
    return op("ReduceMean", x, op.integers(*axes), keepdims=int(keepdim)) if rank else x


def element_count(op: Builder, input: Any) -> Any:
    """Size."""
    return op("Size", input)


def linear_act(
    op: Builder,
    input: Any,
    weight: Any,
    bias: Any = None,
    *,
    residual: Any = None,
    activation: str = "none",
    parameters: Sequence[float] = (),
) -> Any:
    """MatMul or Gemm, Add, and the activation."""
    y = linear(op, input, weight, bias)
    y = y if residual is None else op("Add", y, residual)
    return activate(op, y, activation, parameters, input.dtype)


def quick_gelu(op: Builder, input: Any, alpha: float = 1.702) -> Any:
    """X * sigmoid(alpha * x)."""
    if op.may_use_contrib(input):
        return op.contrib("QuickGelu", input, alpha=float(alpha))
    scaled = input if alpha == 1.0 else op("Mul", input, op.number(alpha, input.dtype))
    return op("Mul", input, op("Sigmoid", scaled))


def linear(op: Builder, input: Any, weight: Any, bias: Any = None) -> Any:
    """Input @ weight.T + bias: Gemm for a matrix, MatMul and Add for more dimensions.

    With a quantized weight Gemm has an integer kernel only where the bias is quantized too. A weight that is a vector
    takes away the last dimension.
    """
    is_matrix = len(input.shape) == len(weight.shape) == 2
    if is_matrix and (not op.is_dequantized(weight) or (bias is not None and op.is_dequantized(bias))):
        return op("Gemm", input, weight, bias, transB=1)
    product = integer_product(op, input, weight, bias)
    if product is not None:
        return product
    if len(weight.shape) == 1:
        # As a matrix: ONNX Runtime multiplies no empty batch with a vector.
        column = op("MatMul", input, op("Unsqueeze", weight, op.integers(1)))
        y = op("Squeeze", column, op.integers(-1))
    else:
        y = op("MatMul", input, _transposed(op, weight))
    return y if bias is None else op("Add", y, bias)


def _transposed(op: Builder, weight: Any) -> Any:
    """Return the transposed weight [out, in]; of a quantized one the integers, so that what dequantizes comes last."""
    if not op.is_dequantized(weight):
        return op("Transpose", weight, perm=[1, 0])
    node = weight.producer()
    integers, *rest = node.inputs
    axis = node.attributes["axis"].as_int()
    return op("DequantizeLinear", op("Transpose", integers, perm=[1, 0]), *rest, axis=1 - axis)


def activate(op: Builder, x: Any, activation: str, parameters: Sequence[float], dtype: Any) -> Any:
    """Apply an activation of `burnish.compiler.fused.activations.ACTIVATIONS`.

    Args:
        dtype: of `x`, which has no type yet.
    """
    if activation == "none":
        return x
    if activation in _PLAIN:
        return op(_PLAIN[activation], x)
    if activation == "hardsigmoid":
        return op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    if activation == "leaky_relu":
        return op("LeakyRelu", x, alpha=float(parameters[0]))
    if activation == "clamp":
        return op("Clip", x, op.number(parameters[0], dtype), op.number(parameters[1], dtype))
    if activation == "silu":
        return op("Mul", x, op("Sigmoid", x))
    if activation == "gelu_tanh":
        return _gelu(op, x, dtype, "tanh")
    assert activation == "gelu", f"{activation} passed the operator's own check"
    return _gelu(op, x, dtype, "none")


def _gelu(op: Builder, x: Any, dtype: Any, approximate: str) -> Any:
    if op.opset >= _GELU_SINCE:
        return op("Gelu", x, approximate=approximate)
    half, one = op.number(0.5, dtype), op.number(1.0, dtype)
    if approximate == "tanh":
        cube = op("Mul", op("Mul", op("Mul", x, x), x), op.number(0.044715, dtype))
        inner = op("Tanh", op("Mul", op("Add", x, cube), op.number(math.sqrt(2 / math.pi), dtype)))
    else:
        inner = op("Erf", op("Mul", x, op.number(math.sqrt(0.5), dtype)))
    return op("Mul", op("Mul", x, half), op("Add", inner, one))
