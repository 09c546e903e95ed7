"""`burnish::rotary_embedding`: ONNX Runtime's own operator, ONNX's (from opset 23), or spelled out."""

from __future__ import annotations

from typing import Any

from burnish.backends.onnx.translations.builder import Builder

__all__ = ["rotary_embedding"]

_SINCE = 23


def rotary_embedding(op: Builder, input: Any, cos: Any, sin: Any, *, heads: int, interleaved: bool = False) -> Any:
    """RotaryEmbedding, ONNX Runtime's or (from opset 23) ONNX's; or slices, products and a Concat."""
    size, half = input.shape[2] // heads, cos.shape[-1]
    # One row for all positions ONNX Runtime's operator refuses.
    by_position = (len(cos.shape) == 2 or cos.shape[0] == 1) and (cos.shape[-2] != 1 or input.shape[1] == 1)
    table = op.integers(-1, half)
    partial = 2 * half if 2 * half != size else 0
    if op.may_use_contrib(input) and by_position and size % 8 == 0:
        cos, sin = (each if len(each.shape) == 2 else op("Reshape", each, table) for each in (cos, sin))
        return op.contrib(
            "RotaryEmbedding", input, op.integers(0), cos, sin,
            num_heads=heads, interleaved=int(interleaved), rotary_embedding_dim=partial,
        )  # fmt: skip
    if op.opset >= _SINCE:
        # Without positions the tables have a row for every token of every sample.
        batch = op("Concat", op("Shape", input, start=0, end=2), op.integers(half), axis=0)
        cos, sin = (op("Expand", each, batch) for each in (cos, sin))
        return op(
            "RotaryEmbedding", input, cos, sin,
            num_heads=heads, interleaved=int(interleaved), rotary_embedding_dim=partial,
        )  # fmt: skip
    return _rotated(op, input, cos, sin, heads, interleaved)


def _rotated(op: Builder, input: Any, cos: Any, sin: Any, heads: int, interleaved: bool) -> Any:
    size, half = input.shape[2] // heads, cos.shape[-1]
    x = op("Reshape", input, op.integers(0, 0, heads, size))
    cos, sin = (op("Unsqueeze", each, op.integers(-2)) for each in (cos, sin))

    def part(start: int, end: int, step: int) -> Any:
        return op("Slice", x, op.integers(start), op.integers(end), op.integers(-1), op.integers(step))

    a, b = (part(0, 2 * half, 2), part(1, 2 * half, 2)) if interleaved else (part(0, half, 1), part(half, 2 * half, 1))
    first = op("Sub", op("Mul", a, cos), op("Mul", b, sin))
    second = op("Add", op("Mul", b, cos), op("Mul", a, sin))
    if interleaved:
        pair = op("Concat", *(op("Unsqueeze", each, op.integers(-1)) for each in (first, second)), axis=-1)
        y = op("Reshape", pair, op.integers(0, 0, heads, 2 * half))
    else:
        y = op("Concat", first, second, axis=-1)
    if 2 * half != size:
        y = op("Concat", y, part(2 * half, size, 1), axis=-1)
    return op("Reshape", y, op.integers(0, 0, heads * size))
