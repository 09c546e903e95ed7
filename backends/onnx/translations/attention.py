"""Attention, for ONNX Runtime's own operators, ONNX's (from opset 23), or spelled out.

Every mask becomes one to add: 0 where a key is seen, the lowest finite number where not. That number absorbs every
score, so hidden keys get exactly nothing and no NaN can arise; a query that sees no key at all, for which torch gives
zeros, is put to zero afterwards (`seen`). What depends on the mask alone is equal in every layer, and merged later.

Not handled: masks of other types than booleans and the type of the query; torch refuses them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from burnish.backends.onnx.translations.builder import CONTRIB, Builder
from burnish.backends.onnx.translations.layers import linear

__all__ = ["multi_head_attention", "scaled_dot_product_attention", "self_attention"]

_SINCE = 23
# From this length on, the operator that walks the keys in blocks is faster than the one that projects too.
_LONG = 512
# Operators whose result holds numbers of their first input, and nothing else.
_REARRANGING = {"Expand", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_DEEPEST = 12
# A mask that adds less hides nothing for good, nor does it overflow, in half precision too.
_NEVER_OVERFLOWS = 3e4
_LOWEST = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).min),
    ir.DataType.DOUBLE: float(np.finfo(np.float64).min),
    ir.DataType.FLOAT16: float(np.finfo(np.float16).min),
    ir.DataType.BFLOAT16: -3.3895313892515355e38,
}


def scaled_dot_product_attention(
    op: Builder,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Matrix products and a softmax over tensors [..., heads, S, D]."""
    rank = len(query.shape)
    scale = float(query.shape[-1]) ** -0.5 if scale is None else scale
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (_repeated(op, each, groups, each.shape[-3], each.shape[-1], rank) for each in (key, value))
    mask = _Mask.of(op, attn_mask, is_causal, query, key, rank - 2)
    return mask.apply(op, _spelled_out(op, query, key, value, mask.added, scale, query.dtype, rank))


def multi_head_attention(
    op: Builder,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
) -> Any:
    """MultiHeadAttention or GroupQueryAttention; Attention; or split heads, attend, and merge them."""
    dtype, size, width = query.dtype, query.shape[2] // heads, value.shape[2] // kv_heads
    unmasked = causal and mask is None and bool(query.shape[1] == key.shape[1])
    # ONNX Runtime takes a scale of 0 for none given, and ONNX's operator refuses what is not positive.
    if scale > 0 and op.may_use_contrib(query, mask):
        if heads == kv_heads:
            found = _Mask.of(op, mask, causal and not unmasked, query, key, 1)
            y = op.contrib(
                "MultiHeadAttention", query, key, value, None, None, found.full(op, query, key),
                num_heads=heads, scale=scale, unidirectional=int(unmasked),
            )  # fmt: skip
            return found.apply_merged(op, y, heads, width)
        if unmasked and size % 8 == 0 and size == width:
            return _grouped(op, query, key, value, heads, kv_heads, scale)
    if scale > 0 and op.opset >= _SINCE and op.standard:
        found = _Mask.of(op, mask, causal and not unmasked, query, key, 1)
        y = op(
            "Attention", query, key, value, found.full(op, query, key),
            q_num_heads=heads, kv_num_heads=kv_heads, scale=scale, is_causal=int(unmasked),
        )  # fmt: skip
        return found.apply_merged(op, y, heads, width)
    found = _Mask.of(op, mask, causal, query, key, 1)
    q, k, v = _split(op, query, heads, size), _split(op, key, kv_heads, size), _split(op, value, kv_heads, width)
    if heads != kv_heads:
        k, v = (_repeated(op, each, heads // kv_heads, kv_heads, d, 4) for each, d in ((k, size), (v, width)))
    y = found.apply(op, _spelled_out(op, q, k, v, found.added, scale, dtype, 4))
    return op("Reshape", op("Transpose", y, perm=[0, 2, 1, 3]), op.integers(0, 0, heads * width))


def self_attention(
    op: Builder,
    input: Any,
    weight: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
) -> Any:
    """Attention, which projects its input itself; or the projection, Split, and `multi_head_attention`."""
    size, length = weight.shape[0] // (heads + 2 * kv_heads), input.shape[1]
    short = not isinstance(length, int) or length < _LONG
    if scale > 0 and op.may_use_contrib(input, mask) and heads == kv_heads and short:
        unmasked = causal and mask is None
        found = _Mask.of(op, mask, causal and not unmasked, input, input, 1)
        bias = op.filled(0.0, [weight.shape[0]], input.dtype) if bias is None else bias
        y = op.contrib(
            "Attention", input, op("Transpose", weight, perm=[1, 0]), bias, None, None, found.full(op, input, input),
            num_heads=heads, scale=scale, unidirectional=int(unmasked),
        )  # fmt: skip
        return found.apply_merged(op, y, heads, size)
    widths = [heads * size, kv_heads * size, kv_heads * size]
    parts = op.several("Split", linear(op, input, weight, bias), op.integers(*widths), outputs=3, axis=-1)
    for part, width in zip(parts, widths, strict=True):
        part.type, part.shape = input.type, ir.Shape([*list(input.shape)[:2], width])
    query, key, value = parts
    return multi_head_attention(op, query, key, value, mask, heads=heads, kv_heads=kv_heads, scale=scale, causal=causal)


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask in the form that softmax wants.

    Attributes:
        added: numbers to add to the scores, of the mask's rank; None for nothing.
        seen: 1 for a query that sees a key, else 0: [.., 1], of the mask's rank; None where every query sees one.
        shape: of `added`; sizes that are not 1 may be unknown (None).
    """

    added: Any
    seen: Any
    shape: tuple[Any, ...] = ()

    @staticmethod
    def of(op: Builder, mask: Any, causal: bool, query: Any, key: Any, axis: int) -> _Mask:
        """Make one of `mask` and, where `causal`, of the order of the tokens, which stand in dimension `axis`."""
        dtype = query.dtype
        if mask is None and not causal:
            return _Mask(None, None)
        lower = _lower_triangle(op, query, key, axis) if causal else None
        shape = () if mask is None else tuple(mask.shape)
        shape = (*shape[:-2], None, None) if causal else shape
        zero, lowest = op.number(0.0, dtype), op.number(_LOWEST[dtype], dtype)
        if mask is None:
            # Every query sees the first key at least.
            return _Mask(op("Where", lower, zero, lowest), None, shape)
        if mask.dtype == ir.DataType.BOOL:
            visible = mask if lower is None else op("And", mask, lower)
            return _Mask(op("Where", visible, zero, lowest), _any(op, visible, dtype), shape)
        if lower is None and _largest(op, mask) < _NEVER_OVERFLOWS:
            return _Mask(mask, None, shape)
        visible = op("Not", op("Equal", mask, op.number(-math.inf, dtype)))
        visible = visible if lower is None else op("And", visible, lower)
        return _Mask(op("Where", visible, mask, lowest), _any(op, visible, dtype), shape)

    def full(self, op: Builder, query: Any, key: Any) -> Any:
        """Return `added` as ONNX Runtime's operators take it: [1 or B, 1 or heads, S, T]."""
        if self.added is None:
            return None
        missing = 4 - len(self.shape)
        added = op("Unsqueeze", self.added, op.integers(*range(missing))) if missing else self.added
        one, rows = op.integers(1), len(self.shape) < 2 or self.shape[-2] == 1
        columns = bool(self.shape) and self.shape[-1] == 1
        if rows or columns:
            queries = op("Shape", query, start=1, end=2) if rows else one
            keys = op("Shape", key, start=1, end=2) if columns else one
            added = op("Expand", added, op("Concat", one, one, queries, keys, axis=0))
        return added

    def apply(self, op: Builder, y: Any) -> Any:
        """Put to zero what sees no key in [..., heads, S, D]."""
        return y if self.seen is None else op("Mul", y, self.seen)

    def apply_merged(self, op: Builder, y: Any, heads: int, width: int) -> Any:
        """Put to zero what sees no key in [B, S, heads * D], where D is `width`."""
        if self.seen is None:
            return y
        if len(self.shape) < 3:
            return op("Mul", y, self.seen)
        if self.shape[-3] == 1:
            return op("Mul", y, op("Squeeze", self.seen, op.integers(-3)))
        missing = 4 - len(self.shape)
        seen = op("Unsqueeze", self.seen, op.integers(*range(missing))) if missing else self.seen
        apart = op("Reshape", y, op.integers(0, 0, heads, width))
        kept = op("Mul", apart, op("Transpose", seen, perm=[0, 2, 1, 3]))
        return op("Reshape", kept, op.integers(0, 0, heads * width))


def _lower_triangle(op: Builder, query: Any, key: Any, axis: int) -> Any:
    """Return booleans [S, T], true where the key is not later than the query."""
    ends = op("Concat", *(op("Shape", each, start=axis, end=axis + 1) for each in (query, key)), axis=0)
    return op("Trilu", op("Expand", op("Constant", value=ir.tensor(np.array(True))), ends), upper=0)


def _any(op: Builder, visible: Any, dtype: ir.DataType) -> Any:
    return op("ReduceMax", op("Cast", visible, to=dtype), op.integers(-1), keepdims=1)


def _largest(op: Builder, value: Any, depth: int = _DEEPEST) -> float:
    """Return a bound for the magnitude of `value`, from the constants that it is made of; infinity for none."""
    node = value.producer()
    if node is None or node.op_type == "Constant":
        held = op.held(value)
        return math.inf if held is None else float(np.abs(held.astype(np.float64)).max(initial=0.0))
    if not depth:
        return math.inf
    if node.op_type in ("Add", "Sum"):
        return sum(_largest(op, each, depth - 1) for each in node.inputs)
    return _largest(op, node.inputs[0], depth - 1) if node.op_type in _REARRANGING else math.inf


def _grouped(op: Builder, query: Any, key: Any, value: Any, heads: int, kv_heads: int, scale: float) -> Any:
    # Every sample is as long as the input: nothing is padded and nothing is cached.
    length = op("Cast", op("Shape", query, start=1, end=2), to=ir.DataType.INT32)
    last = op("Sub", length, op.number(1, ir.DataType.INT32))
    lasts = op("Expand", last, op("Shape", query, start=0, end=1))
    found = op.several(
        "GroupQueryAttention", query, key, value, None, None, lasts, op("Squeeze", length),
        outputs=3, domain=CONTRIB, num_heads=heads, kv_num_heads=kv_heads, scale=scale,
    )  # fmt: skip
    return found[0]


def _spelled_out(op: Builder, q: Any, k: Any, v: Any, added: Any, scale: float, dtype: ir.DataType, rank: int) -> Any:
    keys = op("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op("MatMul", op("Mul", q, op.number(scale, dtype)), keys)
    scores = scores if added is None else op("Add", scores, added)
    return op("MatMul", op("Softmax", scores, axis=-1), v)


def _split(op: Builder, tokens: Any, heads: int, size: int) -> Any:
    return op("Transpose", op("Reshape", tokens, op.integers(0, 0, heads, size)), perm=[0, 2, 1, 3])


def _repeated(op: Builder, x: Any, groups: int, heads: int, size: int, rank: int) -> Any:
    """Repeat every head of [..., heads, T, size], of `rank` dimensions, `groups` times."""
    apart = op("Unsqueeze", x, op.integers(-3))
    copies = op("Expand", apart, op.integers(groups, 1, 1))
    return op("Reshape", copies, op.integers(*[0] * (rank - 3), heads * groups, -1, size))
