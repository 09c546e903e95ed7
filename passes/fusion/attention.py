"""Rules: attention that a model spells out becomes scaled_dot_product_attention.

softmax(scale * q k^T + mask) v, of 4 dimensions [B, H, S, D] or 3 [N, S, D], in the spellings of `scores`: scaled
before or after the product, with masks and biases that are added or filled in, by matmul, bmm, baddbmm or einsum. Where
B and H are joined for the products alone, the operator has them apart. Keys and values with one head for all queries
(multi-query) say `enable_gqa`.

Not handled: 2 or 5 dimensions; attention whose weights or scores have another reader; half precision, where the
operator rounds less often than what it replaces; weights that are masked or normalized again, or change their type; a
softmax over extra columns (sinks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.types import same_shape, same_type, shape_of, tensor_of
from burnish.passes.canonical.weights import described
from burnish.passes.fusion.attention_layout import (
    Heads,
    View,
    heads_of_operands,
    heads_of_scores,
    read_operand,
    swaps,
    view_of,
)
from burnish.passes.fusion.einsums import einsum_of_attention
from burnish.passes.fusion.matching import calls, erase_unused
from burnish.passes.fusion.scores import Refusal, Regroup, Scale, Scores, keeps_matrices, mask_of, scale_of, trace

__all__ = ["RULES"]


@rule("aten.matmul", "aten.bmm")
def spelled_out_attention(node: fx.Node, rewriter: Rewriter) -> None:
    """softmax(scale * q k^T + mask) v is scaled_dot_product_attention(q, k, v, mask, scale=scale)."""
    weights, values, turned = node.args[0], node.args[1], False
    if not calls(_ungrouped(weights), "aten.softmax.int", "aten.to.dtype") and swaps(values):
        assert isinstance(values, fx.Node)
        weights, values, turned = values.args[0], weights, True
    softmax = _ungrouped(weights)
    if calls(softmax, "aten.to.dtype") and calls(softmax.args[0], "aten.softmax.int"):
        rewriter.skip(node, "its weights change their type")
    elif calls(softmax, "aten.softmax.int"):
        try:
            _fuse(_Weighting(node, weights, softmax, values, turned), rewriter)
        except Refusal as refusal:
            rewriter.skip(node, str(refusal))


@dataclass(frozen=True, slots=True)
class _Weighting:
    """`node` is weights times values, or values^T times weights^T where it is `turned`.

    The weights are `softmax`, maybe with leading dimensions joined or split.
    """

    node: fx.Node
    weights: Any
    softmax: fx.Node
    values: Any
    turned: bool


def _fuse(found: _Weighting, rewriter: Rewriter) -> None:
    """Replace attention by its operator.

    Raises:
        Refusal: it is nothing that one operator says; the graph is unchanged.
    """
    node = found.node
    scores = _scores(found, rewriter)
    scale = scale_of(scores.steps)
    query, first = read_operand(scores.left, rewriter)
    key, second = read_operand(scores.right, rewriter, swap=True)
    views = [query, key, view_of(found.values, found.turned)]
    scale *= first * second
    if not scale > 0:
        raise Refusal("it scales its scores by a factor that is not positive")
    _check_readers(found, scores)
    _check_types(views)
    heads = _heads(found, scores, views)

    def shaped(step: fx.Node, term: fx.Node) -> fx.Node:
        rank = len(shape_of(term) or ())
        if rank < 2:
            return rewriter.insert(node, "aten.reshape", (term, [1, -1]))
        joined = len(shape_of(step) or ()) == 3
        return term if heads is None else heads.shaped(joined, term, node, rewriter)

    parts = [
        view.insert(node, rewriter) if heads is None else heads.split(view, index > 0, node, rewriter)
        for index, view in enumerate(views)
    ]
    mask = mask_of(node, scores.steps, rewriter, shaped)
    kwargs: dict[str, Any] = {"scale": scale}
    if _one_head(views):
        kwargs["enable_gqa"] = True
    dead = [*node.all_input_nodes, scores.left, scores.right]
    operator, args = "aten.scaled_dot_product_attention", (*parts, mask, 0.0, False)
    origins = [found.weights, found.softmax, *(step.node for step in scores.steps), scores.product]
    if not found.turned and (heads is None or not heads.joined):
        rewriter.replace(node, operator, args, kwargs, origins=origins, same_type=True)
    else:
        whole = rewriter.insert(node, operator, args, kwargs, origins=[node, *origins])
        result = _result(found, heads, whole, rewriter)
        rewriter.replace(node, result)
        erase_unused(rewriter, [result])
    erase_unused(rewriter, dead)


def _scores(found: _Weighting, rewriter: Rewriter) -> Scores:
    given = arguments(found.softmax)
    rank = len(shape_of(found.softmax) or ())
    if given["dim"] % rank != rank - 1:
        raise Refusal("its softmax is not over the last dimension")
    if given["dtype"] is not None:
        raise Refusal("its weights change their type")
    scores = trace(given["self"], rewriter)
    if scores is None:
        read = described(given["self"])
        raise Refusal(f"its softmax reads {read}, no product of queries and keys that is scaled, masked or biased")
    return scores


def _check_readers(found: _Weighting, scores: Scores) -> None:
    for node in (found.weights, found.softmax):
        if len(node.users) != 1:
            raise Refusal(f"its weights have {len(node.users)} users")
    for node in (*(step.node for step in scores.steps), scores.product):
        if len(node.users) != 1:
            raise Refusal(f"its scores have {len(node.users)} users")


def _check_types(views: Sequence[View]) -> None:
    query_type = tensor_of(views[0].source)
    if query_type is None or query_type.dtype not in (torch.float32, torch.float64):
        raise Refusal("it computes in half precision, where the operator rounds less often")
    if len(views[0].dims) not in (3, 4):
        raise Refusal(f"its queries have {len(views[0].dims)} dimensions")
    query, key, value = (view.shape[:-2] for view in views)
    # Values alone may have batch and heads apart: the weights are reshaped to that.
    same = same_shape(query, key) and (same_shape(key, value) or len(value) > len(key))
    if not same and not (_one_head(views) and same_shape(query[:1], key[:1]) and same_shape(key, value)):
        raise Refusal("its queries, keys and values are not of one batch size and number of heads")


def _one_head(views: Sequence[View]) -> bool:
    """Tell whether keys and values have one head, and queries more."""
    query, key = views[0].shape, views[1].shape
    return len(query) == len(key) == 4 and key[1] == 1 and not same_shape(query[1:2], key[1:2])


def _heads(found: _Weighting, scores: Scores, views: Sequence[View]) -> Heads | None:
    """Return how batch and heads are joined; None where they are not, or where it stays so."""
    regroups = [step.node for step in scores.steps if isinstance(step, Regroup)]
    if found.weights is not found.softmax:
        regroups.insert(0, found.weights)
    value = views[2].shape
    if regroups:
        heads = heads_of_scores(regroups, found.node)
        if not all(isinstance(view.shape[-1], int) for view in views):
            raise Refusal("its heads are joined, and of a dynamic size")
        if len(value) == 4 and not same_shape(value[:2], heads.apart):
            raise Refusal("its queries, keys and values are not of one batch size and number of heads")
        return heads
    if len(value) != len(views[0].dims):
        raise Refusal("its queries, keys and values are not of one batch size and number of heads")
    masked = not all(isinstance(step, Scale) for step in scores.steps)
    if found.turned or masked or not isinstance(value[-1], int):
        return None
    return heads_of_operands(views)


def _result(found: _Weighting, heads: Heads | None, whole: fx.Node, rewriter: Rewriter) -> fx.Node:
    """Return what stands for `found.node`, made of the attention `whole`."""
    node = found.node
    if heads is None:
        return view_of(whole, swap=True).insert(node, rewriter)
    for user in list(node.users):
        if calls(user, "aten.reshape") and same_type(user, whole):
            rewriter.replace(user, whole)
    sizes = [*heads.joined[:2], (shape_of(node) or ())[2]]
    return rewriter.insert(node, "aten.reshape", (whole, sizes), like=node)


def _ungrouped(weights: Any) -> Any:
    """Return the softmax whose leading dimensions `weights` joins or splits."""
    return weights.args[0] if calls(weights, "aten.reshape") and keeps_matrices(weights.args[0], weights) else weights


RULES = (einsum_of_attention, spelled_out_attention)
