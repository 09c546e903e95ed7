"""Rules that drop operators which change nothing: dropout in evaluation, copies, casts to the same, arithmetic with 1.

Not handled: adding 0 to floats stays, because it turns -0.0 into 0.0; a copy of a buffer that the run
updates stays too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import argument, arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.aliases import drop
from burnish.passes.canonical.types import is_number, same_type, shape_of, tensor_of

__all__ = ["RULES"]

# These read strides, which the IR does not describe: a copy in front of one may be what makes it legal.
_READS_STRIDES = {
    torch.ops.aten.as_strided.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.view_as_complex.default,
    torch.ops.aten.view_as_real.default,
}


@rule("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout")
def drop_dropout(node: fx.Node, rewriter: Rewriter) -> None:
    """dropout(x, p, train=False) and dropout(x, 0, train) are x."""
    found = arguments(node)
    if found["train"] and found["p"] != 0:
        rewriter.skip(node, "dropout is in training mode")
        return
    drop(node, found["input"], rewriter)


@rule(
    "aten.clone",
    "aten.contiguous",
    "aten.detach",
    "aten.alias",
    "aten.lift_fresh",
    "aten.lift_fresh_copy",
    "aten.positive",
    "aten.resolve_conj",
    "aten.resolve_neg",
)
def drop_copy(node: fx.Node, rewriter: Rewriter) -> None:
    """A copy is what it copies: memory formats are not part of the IR, and values are never written but for buffers."""
    if any(node.graph.find_nodes(op="call_function", target=target, sort=False) for target in _READS_STRIDES):
        rewriter.skip(node, "the graph has an operator that reads strides")
        return
    if not same_type(node, node.args[0]):
        rewriter.skip(node, "the copy has another type")
        return
    drop(node, node.args[0], rewriter)


@rule("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar")
def drop_one(node: fx.Node, rewriter: Rewriter) -> None:
    """X * 1 and x / 1 are x, where the type stays."""
    if not is_number(argument(node, "other"), 1) or not same_type(node, node.args[0]):
        return
    value = tensor_of(node)
    if value is not None and value.is_complex():
        rewriter.skip(node, "complex arithmetic makes NaN of infinity")
        return
    drop(node, node.args[0], rewriter)


@rule("aten.add.Tensor", "aten.add.Scalar")
def drop_added_zero(node: fx.Node, rewriter: Rewriter) -> None:
    """X + 0 is x for integers."""
    if not is_number(argument(node, "other"), 0) or not same_type(node, node.args[0]):
        return
    value = tensor_of(node)
    if value is None or value.is_floating_point() or value.is_complex():
        rewriter.skip(node, "adding 0 turns -0.0 into 0.0")
        return
    drop(node, node.args[0], rewriter)


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def drop_subtracted_zero(node: fx.Node, rewriter: Rewriter) -> None:
    """X - 0 is x: -0.0 - 0 is -0.0."""
    found = arguments(node)
    if is_number(found["other"], 0) and is_number(found["alpha"], 1) and same_type(node, node.args[0]):
        drop(node, node.args[0], rewriter)


@rule("aten.pow.Tensor_Scalar")
def drop_first_power(node: fx.Node, rewriter: Rewriter) -> None:
    """X ** 1 is x."""
    if is_number(argument(node, "exponent"), 1) and same_type(node, node.args[0]):
        drop(node, node.args[0], rewriter)


@rule("aten.neg", "aten.logical_not", "aten.bitwise_not")
def drop_double_negation(node: fx.Node, rewriter: Rewriter) -> None:
    """-(-x) is x, and so is the double logical negation of a boolean."""
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not node.target:
        return
    if not same_type(node, inner.args[0]):
        rewriter.skip(node, "the double negation has another type")
        return
    drop(node, inner.args[0], rewriter)


@rule("aten.relu", "aten.relu6", "aten.abs")
def drop_repetition(node: fx.Node, rewriter: Rewriter) -> None:
    """relu(relu(x)) is relu(x); the same holds for relu6 and abs."""
    inner = node.args[0]
    if isinstance(inner, fx.Node) and inner.target is node.target:
        rewriter.replace(node, inner)


@rule("aten.cat")
def drop_empty_from_cat(node: fx.Node, rewriter: Rewriter) -> None:
    """An empty vector in a concatenation of tensors, as an unfilled cache has it, adds nothing."""
    tensors = arguments(node)["tensors"]
    kept = [each for each in tensors if shape_of(each) != (0,)]
    if not kept or len(kept) == len(tensors):
        return
    if any(_dtype(each) != _dtype(node) for each in kept):
        rewriter.skip(node, "an empty tensor in it decides the type")
        return
    rewriter.replace(node, "aten.cat", (kept, arguments(node)["dim"]), {}, same_type=True)


def _dtype(value: Any) -> torch.dtype | None:
    found = tensor_of(value)
    return None if found is None else found.dtype


@rule("aten.cat")
def drop_single_cat(node: fx.Node, rewriter: Rewriter) -> None:
    """A concatenation of one tensor is that tensor."""
    tensors = node.args[0]
    if isinstance(tensors, (list, tuple)) and len(tensors) == 1 and same_type(node, tensors[0]):
        drop(node, tensors[0], rewriter)


RULES = (
    drop_dropout,
    drop_copy,
    drop_one,
    drop_added_zero,
    drop_subtracted_zero,
    drop_first_power,
    drop_double_negation,
    drop_repetition,
    drop_empty_from_cat,
    drop_single_cat,
)
