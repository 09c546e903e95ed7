"""`aten::rms_norm` and the norms of sums.

The sums stand alone: ONNX Runtime's SkipLayerNormalization takes more than twice as long on the CPU as a sum and a
LayerNormalization, and SkipSimplifiedLayerNormalization gains nothing either (1.31, see benchmarks/kernels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from burnish.backends.onnx.translations.builder import Builder

__all__ = ["embedding_layer_norm", "layer_norm", "rms_norm", "skip_layer_norm", "skip_rms_norm"]

_RMS_SINCE = 23
# What torch adds where the model names no epsilon.
_EPSILON = {
    ir.DataType.DOUBLE: torch.finfo(torch.float64).eps,
    ir.DataType.FLOAT: torch.finfo(torch.float32).eps,
    ir.DataType.FLOAT16: torch.finfo(torch.float16).eps,
    ir.DataType.BFLOAT16: torch.finfo(torch.bfloat16).eps,
}


def rms_norm(
    op: Builder, input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """RMSNormalization, or what it comes down to, in float32 at least."""
    shape, dtype = list(normalized_shape), input.dtype
    eps = _EPSILON[dtype] if eps is None else eps
    if op.opset >= _RMS_SINCE and all(isinstance(size, int) for size in shape):
        return op("RMSNormalization", input, _scale(op, weight, shape, dtype), axis=-len(shape), epsilon=eps)
    narrow = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    wide = ir.DataType.FLOAT if narrow else dtype
    x = op("Cast", input, to=wide) if narrow else input
    square = op("ReduceMean", op("Mul", x, x), op.integers(*range(-len(shape), 0)), keepdims=1)
    y = op("Div", x, op("Sqrt", op("Add", square, op.number(eps, wide))))
    y = op("Cast", y, to=dtype) if narrow else y
    return y if weight is None else op("Mul", y, weight)


def skip_layer_norm(
    op: Builder,
    input: Any,
    skip: Any,
    input_bias: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> tuple[Any, Any]:
    """Add and LayerNormalization."""
    total = _sum(op, input, skip, input_bias)
    return layer_norm(op, total, list(normalized_shape), weight, bias, eps, input.dtype), total


def skip_rms_norm(
    op: Builder,
    input: Any,
    skip: Any,
    input_bias: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    eps: float = 1e-6,
) -> tuple[Any, Any]:
    """Add and RMSNormalization."""
    total = _sum(op, input, skip, input_bias)
    total.type, total.shape = input.type, input.shape
    return rms_norm(op, total, normalized_shape, weight, eps), total


def embedding_layer_norm(
    op: Builder,
    ids: Sequence[Any],
    tables: Sequence[Any],
    added: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Gather for every table, Add, and LayerNormalization."""
    dtype = tables[0].dtype
    parts = [op("Gather", table, index) for table, index in zip(tables, ids, strict=True)]
    parts += [] if added is None else [added]
    total = parts[0]
    for each in parts[1:]:
        total = op("Add", total, each)
    return layer_norm(op, total, list(normalized_shape), weight, bias, eps, dtype)


def layer_norm(op: Builder, x: Any, shape: list[int], weight: Any, bias: Any, eps: float, dtype: Any) -> Any:
    """LayerNormalization over the last dimensions, whose sizes are `shape`."""
    weight = _scale(op, weight, shape, dtype)
    return op("LayerNormalization", x, weight, bias, axis=-len(shape), epsilon=eps)


def _sum(op: Builder, input: Any, skip: Any, input_bias: Any) -> Any:
    return op("Add", input if input_bias is None else op("Add", input, input_bias), skip)


def _scale(op: Builder, weight: Any, shape: list[int], dtype: Any) -> Any:
    """Return `weight`, or ones where there is none: ONNX wants one."""
    if weight is not None:
        return weight
    return op.filled(1.0, shape, dtype)
