"""Convolutions, `burnish::conv_act`, `burnish::linear_act`, means and sizes.

ONNX Runtime joins Conv, a sum and most activations by itself when it loads a file, also in its blocked layout, so the
standard operators are written for all dialects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from burnish.backends.onnx.translations.activations import activate
from burnish.backends.onnx.translations.builder import Builder
from burnish.backends.onnx.translations.quantized import integer_product

__all__ = ["conv_act", "convolution", "element_count", "linear", "linear_act", "mean"]


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
