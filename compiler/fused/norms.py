"""Norms of sums: of a residual stream and a branch, and of the embeddings of a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.compiler.fused.registry import fused_operator

__all__ = ["embedding_layer_norm", "skip_layer_norm", "skip_rms_norm"]

_aten = torch.ops.aten


@fused_operator(
    "skip_layer_norm(Tensor input, Tensor skip, Tensor? input_bias, SymInt[] normalized_shape, Tensor? weight=None,"
    " Tensor? bias=None, float eps=1e-05) -> (Tensor normalized, Tensor sum)"
)
def skip_layer_norm(
    input: Tensor,
    skip: Tensor,
    input_bias: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Layer norm of the sum input + input_bias + skip; returns the norm and the sum.

    Args:
        input: [..., N], what a branch of the network computed.
        skip: the shape of `input`: the residual stream.
        input_bias: [N], the bias that the last layer of the branch would add, or None.
        normalized_shape: [N].
        weight: [N] or None.
        bias: [N] or None.
        eps: added to the variance.
    """
    total = (input if input_bias is None else input + input_bias) + skip
    return _aten.layer_norm.default(total, normalized_shape, weight, bias, eps), total


@fused_operator(
    "skip_rms_norm(Tensor input, Tensor skip, Tensor? input_bias, SymInt[] normalized_shape, Tensor? weight=None,"
    " float eps=1e-06) -> (Tensor normalized, Tensor sum)"
)
def skip_rms_norm(
    input: Tensor,
    skip: Tensor,
    input_bias: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """RMSNorm (arXiv 1910.07467) of the sum input + input_bias + skip; returns the norm and the sum.

    Arguments as in `skip_layer_norm`; `eps` is added to the mean square.
    """
    total = (input if input_bias is None else input + input_bias) + skip
    return _aten.rms_norm.default(total, normalized_shape, weight, eps), total


@fused_operator(
    "embedding_layer_norm(Tensor[] ids, Tensor[] tables, Tensor? added, SymInt[] normalized_shape, Tensor? weight=None,"
    " Tensor? bias=None, float eps=1e-05) -> Tensor"
)
def embedding_layer_norm(
    ids: Sequence[Tensor],
    tables: Sequence[Tensor],
    added: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm of the sum of several embeddings of one token (words, positions, token types).

    Args:
        ids: integers, one tensor for every table, that broadcast to [B, S]; the first one has that shape.
        tables: [entries, N] each.
        added: what broadcasts to [B, S, N] and is added too (positions of a fixed length), or None.
        normalized_shape: [N].
        weight: [N] or None.
        bias: [N] or None.
        eps: added to the variance.
    """
    total = _aten.embedding.default(tables[0], ids[0])
    for table, index in zip(tables[1:], ids[1:], strict=True):
        total = total + _aten.embedding.default(table, index)
    total = total if added is None else total + added
    normalized: Tensor = _aten.layer_norm.default(total, normalized_shape, weight, bias, eps)
    return normalized
