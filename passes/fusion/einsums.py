"""The einsums of spelled-out attention as products of matrices, for the rules that look for those.

Not handled: an ellipsis, a label twice in one operand, more than one label to sum over, and more than two operands;
einsums that are not on the way to or from a softmax, since nothing looks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.types import same_shape, shape_of
from burnish.passes.fusion.matching import calls, only_user

__all__ = ["einsum_of_attention"]

# How far below a product of queries and keys its softmax may be.
_NEAR = 8


@rule("aten.einsum")
def einsum_of_attention(node: fx.Node, rewriter: Rewriter) -> None:
    """An einsum that multiplies two stacks of matrices, before or after a softmax, is matmul between permutes."""
    found = arguments(node)
    terms, arrow, result = found["equation"].replace(" ", "").partition("->")
    names, operands = terms.split(","), list(found["tensors"])
    if not arrow or len(names) != 2 or len(operands) != 2 or not _near_softmax(node, operands):
        return
    if any(len(set(each)) != len(each) or "." in each for each in (*names, result)):
        rewriter.skip(node, "its equation has an ellipsis, or a label twice in one operand")
        return
    # The order of the weights stays, or nothing would recognize them.
    order = next((name for name, each in zip(names, operands, strict=True) if calls(each, "aten.softmax.int")), result)
    batch = [label for label in order if label in result and label in names[0] and label in names[1]]
    summed = [label for label in names[0] if label in names[1] and label not in result]
    rows = [label for label in result if label not in names[1]]
    columns = [label for label in result if label not in names[0]]
    labels = {*batch, *summed, *rows, *columns}
    if not batch or not len(rows) == len(columns) == len(summed) == 1 or labels != set(terms) - {","}:
        rewriter.skip(node, "its equation does not multiply two stacks of matrices")
        return
    # einsum repeats a dimension of size 1 that it sums over, and matmul does not.
    sizes = [_sizes(operand, name, summed) for operand, name in zip(operands, names, strict=True)]
    if not same_shape(*sizes):
        rewriter.skip(node, "it sums over dimensions of different sizes")
        return
    if result.index(rows[0]) > result.index(columns[0]):
        # The second operand has the rows of the result.
        names, operands, rows, columns = names[::-1], operands[::-1], columns, rows
    left = _ordered(node, rewriter, operands[0], names[0], [*batch, *rows, *summed])
    right = _ordered(node, rewriter, operands[1], names[1], [*batch, *summed, *columns])
    made = [*batch, *rows, *columns]
    if made == list(result):
        rewriter.replace(node, "aten.matmul", (left, right), {}, same_type=True)
        return
    product = rewriter.insert(node, "aten.matmul", (left, right))
    rewriter.replace(node, "aten.permute", (product, [made.index(each) for each in result]), {}, same_type=True)


def _near_softmax(node: fx.Node, operands: Sequence[Any]) -> bool:
    """Tell whether `node` reads a softmax, or is the start of a chain that ends in one."""
    if any(calls(each, "aten.softmax.int") for each in operands):
        return True
    user = only_user(node)
    for _ in range(_NEAR):
        if user is None or calls(user, "aten.softmax.int"):
            break
        user = only_user(user)
    return calls(user, "aten.softmax.int")


def _sizes(operand: fx.Node, name: str, labels: Sequence[str]) -> list[Any]:
    shape = shape_of(operand) or ()
    return [shape[name.index(label)] for label in labels]


def _ordered(anchor: fx.Node, rewriter: Rewriter, operand: fx.Node, name: str, wanted: list[str]) -> fx.Node:
    """Return `operand`, whose dimensions are called `name`, with the dimensions `wanted` in this order."""
    if list(name) == wanted:
        return operand
    return rewriter.insert(anchor, "aten.permute", (operand, [name.index(each) for each in wanted]))
