"""Quantize and dequantize, with numbers known now and with ranges found at run time.

Not handled: ranges found at run time for other integers than all of uint8, for which ONNX has no operator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from burnish.backends.onnx.translations.builder import Builder

__all__ = [
    "choose_range",
    "dequantize_by_tensor",
    "dequantize_per_channel",
    "dequantize_per_tensor",
    "integer_product",
    "quantize_by_tensor",
    "quantize_per_tensor",
]


def choose_range(op: Builder, input: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> tuple[Any, Any]:
    """DynamicQuantizeLinear, whose integers `quantize_by_tensor` finds."""
    if dtype != ir.DataType.UINT8 or (quant_min, quant_max) != (0, 255):
        raise ValueError("ranges found at run time are for uint8 from 0 to 255 only")
    _, scale, zero_point = op.several("DynamicQuantizeLinear", input, outputs=3)
    # The types that PyTorch has for them; who reads them looks behind the casts.
    return op("Cast", scale, to=ir.DataType.DOUBLE), op("Cast", zero_point, to=ir.DataType.INT64)


def quantize_by_tensor(
    op: Builder, input: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    """QuantizeLinear, or the integers of DynamicQuantizeLinear."""
    found = _chosen(scale)
    if found is not None and found.inputs[0] is input:
        return found.outputs[0]
    scale, zero_point = op("Cast", scale, to=input.dtype), op("Cast", zero_point, to=dtype)
    return op("QuantizeLinear", input, scale, zero_point)


def dequantize_by_tensor(
    op: Builder,
    input: Any,
    scale: Any,
    zero_point: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    *,
    out_dtype: int | None = None,
) -> Any:
    """DequantizeLinear."""
    found = _chosen(scale)
    if found is not None:
        scale, zero_point = found.outputs[1:]
    else:
        scale, zero_point = op("Cast", scale, to=out_dtype or ir.DataType.FLOAT), op("Cast", zero_point, to=dtype)
    return op("DequantizeLinear", input, scale, zero_point)


def quantize_per_tensor(
    op: Builder, input: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> Any:
    """QuantizeLinear with numbers known now; limits of their own are kept on the integers.

    Before QuantizeLinear, ONNX Runtime would see a convolution and its result apart.
    """
    kind = ir.DataType(dtype)
    integers = op("QuantizeLinear", input, op.number(scale, input.dtype), op.number(zero_point, kind))
    limits = np.iinfo(kind.numpy())
    if (quant_min, quant_max) == (limits.min, limits.max):
        return integers
    return op("Clip", integers, op.number(quant_min, kind), op.number(quant_max, kind))


def dequantize_per_tensor(
    op: Builder,
    input: Any,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    *,
    out_dtype: int | None = None,
) -> Any:
    """DequantizeLinear with numbers known now."""
    kind = ir.DataType(out_dtype or ir.DataType.FLOAT)
    return op("DequantizeLinear", input, op.number(scale, kind), op.number(zero_point, ir.DataType(dtype)))


def dequantize_per_channel(
    op: Builder,
    input: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    *,
    out_dtype: int | None = None,
) -> Any:
    """DequantizeLinear along a dimension.

    ONNX Runtime's integer Gemm wants zero points, be they zeros; of int32 there are none.
    """
    if zero_points is not None:
        zero_points = op("Cast", zero_points, to=dtype)
    elif dtype != ir.DataType.INT32:
        zero_points = op.filled(0, [int(size) for size in scales.shape], ir.DataType(dtype))
    return op("DequantizeLinear", input, scales, zero_points, axis=axis)


def integer_product(op: Builder, input: Any, weight: Any, bias: Any) -> Any:
    """Input @ weight.T + bias by ONNX Runtime's MatMulIntegerToFloat; None where operands are not what that takes.

    It would make the same of MatMul between its pairs, but not of a product of two matrices with a bias, which becomes
    a Gemm before, and the bias would be added by a kernel of its own.
    """
    if op.standard or not op.is_dequantized(weight) or (bias is not None and op.is_dequantized(bias)):
        return None
    given, held = input.producer(), weight.producer()
    if given is None or given.op_type != "DequantizeLinear" or "axis" in given.attributes:
        return None
    if held.inputs[0].dtype != ir.DataType.INT8 or held.attributes["axis"].as_int() != 0:
        return None
    integers, scale, point = given.inputs
    weights, scales, points = held.inputs
    weights = op("Transpose", weights, perm=[1, 0])
    return op.contrib("MatMulIntegerToFloat", integers, weights, scale, scales, point, points, bias)


def _chosen(scale: Any) -> Any:
    """Return the DynamicQuantizeLinear that `scale` comes from; None where it comes from elsewhere."""
    node = scale.producer()
    node = node.inputs[0].producer() if node is not None and node.op_type == "Cast" else node
    return node if node is not None and node.op_type == "DynamicQuantizeLinear" else None
