"""Attention over tokens: heads lie side by side in the last dimension, as the projections make and read them."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.compiler.fused.registry import fused_operator

__all__ = ["multi_head_attention", "rotary_embedding", "self_attention"]

_aten = torch.ops.aten


@fused_operator(
    "multi_head_attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, *, int heads, int kv_heads,"
    " float scale, bool causal=False) -> Tensor"
)
def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
) -> Tensor:
    """softmax(scale * query key^T + mask) value, head by head (arXiv 1706.03762); returns [B, S, heads * V].

    A query that may see no key gives zeros, as `scaled_dot_product_attention` has it.

    Args:
        query: [B, S, heads * D].
        key: [B, T, kv_heads * D]; head h of the query reads head h // (heads / kv_heads) (arXiv 2305.13245).
        value: [B, T, kv_heads * V].
        mask: what broadcasts to [B, heads, S, T]: booleans, true where a key may be seen, or numbers to add.
        heads: number of heads of the query, a multiple of `kv_heads`.
        kv_heads: number of heads of key and value.
        scale: factor of the scores.
        causal: query i sees keys 0 to i only, besides what the mask hides.
    """
    q, k, v = _split(query, heads), _split(key, kv_heads), _split(value, kv_heads)
    if causal and mask is not None:
        seen = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, float("-inf"))
    grouped = heads != kv_heads
    y: Tensor = _aten.scaled_dot_product_attention.default(
        q, k, v, mask, 0.0, causal and mask is None, scale=scale, enable_gqa=grouped
    )
    y = y.permute(0, 2, 1, 3)
    return y.reshape(y.size(0), y.size(1), heads * y.size(3))


@fused_operator(
    "self_attention(Tensor input, Tensor weight, Tensor? bias=None, Tensor? mask=None, *, int heads, int kv_heads,"
    " float scale, bool causal=False) -> Tensor"
)
def self_attention(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
) -> Tensor:
    """`multi_head_attention` of the three parts of one projection of `input`; returns [B, S, heads * D].

    Args:
        input: [B, S, I].
        weight: [(heads + 2 * kv_heads) * D, I]: rows for query, key and value, in this order.
        bias: [(heads + 2 * kv_heads) * D] or None.
        mask: as in `multi_head_attention`, and so are the other arguments.
        heads: number of heads of the query.
        kv_heads: number of heads of key and value.
        scale: factor of the scores.
        causal: query i sees keys 0 to i only.
    """
    size = weight.size(0) // (heads + 2 * kv_heads)
    projected = _aten.linear.default(input, weight, bias)
    q, k, v = torch.split(projected, [heads * size, kv_heads * size, kv_heads * size], dim=-1)
    attended: Tensor = multi_head_attention(q, k, v, mask, heads=heads, kv_heads=kv_heads, scale=scale, causal=causal)
    return attended


@fused_operator(
    "rotary_embedding(Tensor input, Tensor cos, Tensor sin, *, int heads, bool interleaved=False) -> Tensor"
)
def rotary_embedding(input: Tensor, cos: Tensor, sin: Tensor, *, heads: int, interleaved: bool = False) -> Tensor:
    """Rotate pairs of features of every head by angles that depend on the position (arXiv 2104.09864).

    With R = cos.size(-1), the first 2 R features of each head are rotated, and the others stay:
    (a, b) becomes (a cos - b sin, b cos + a sin), where a pair is feature i with i + R, or 2 i with 2 i + 1 where
    `interleaved`.

    Args:
        input: [B, S, heads * D].
        cos: [S, R], or what broadcasts to [B, S, R].
        sin: the shape of `cos`.
        heads: number of heads.
        interleaved: pairs are neighbours.
    """
    x = input.view(input.size(0), input.size(1), heads, input.size(2) // heads)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    width = 2 * cos.size(-1)
    turned = x[..., :width]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
        y = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    y = y if width == x.size(3) else torch.cat((y, x[..., width:]), dim=-1)
    return y.reshape(input.size(0), input.size(1), input.size(2))


def _split(tokens: Tensor, heads: int) -> Tensor:
    """Return [B, S, heads * D] as [B, heads, S, D]."""
    return tokens.view(tokens.size(0), tokens.size(1), heads, tokens.size(2) // heads).permute(0, 2, 1, 3)
