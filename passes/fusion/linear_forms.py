"""Rules: Products with a constant matrix become linear layers on the tensor that the model had before regrouping it.

A constant that such a product reads is stored anew, transposed. A vector that is added behind becomes the bias in
`scales`. Not handled: an addmm with factors, or whose bias is no vector of its outputs; a matrix that another operator
than such a product reads too; a product with a constant of three dimensions.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import fx
from torch.fx.node import Argument

from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.types import is_number, same_shape, shape_of, tensor_of
from burnish.passes.canonical.weights import described, in_several_graphs, single_user
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_ADDMM = find_operator("aten.addmm")
# The names of the two factors of every product.
_FACTORS: dict[Any, tuple[str, str]] = {
    _ADDMM: ("mat1", "mat2"),
    find_operator("aten.mm"): ("self", "mat2"),
    find_operator("aten.matmul"): ("self", "other"),
}


@rule("aten.addmm", "aten.mm", "aten.matmul")
def constant_product(node: fx.Node, rewriter: Rewriter) -> None:
    """addmm(b, x, w), mm(x, w) and matmul(x, w) with a constant w are linear(x, w transposed, b)."""
    matrix = arguments(node)[_FACTORS[node.target][1]]
    value = tensor_of(matrix)
    if value is None or matrix.op != "get_attr" or value.dim() != 2 or not value.is_floating_point():
        return
    try:
        constant = read_constant(matrix, "matrix", rewriter)
        if in_several_graphs(matrix, rewriter):
            raise Refusal("its matrix is shared with another graph")
        layers = {user: _as_linear(user, matrix) for user in matrix.users}
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    weight = rewriter.set_constant(node.graph, str(matrix.target), constant.t().contiguous(), [matrix])
    for user, (x, bias) in layers.items():
        args = (x, weight) if bias is None else (x, weight, bias)
        rewriter.replace(user, "aten.linear", args, {}, same_type=True)
    erase_unused(rewriter, [matrix])


@rule("aten.reshape")
def linear_between_reshapes(node: fx.Node, rewriter: Rewriter) -> None:
    """reshape(linear(reshape(x))), where only leading dimensions are regrouped, is a linear layer on x as it was."""
    layer = node.args[0]
    if not isinstance(layer, fx.Node) or not calls(layer, "aten.linear") or AffineLayer.of(layer) is None:
        return
    given, shape, rows = arguments(layer), shape_of(node), shape_of(layer)
    flat, features = given["input"], (shape_of(given["weight"]) or (0,))[-1]
    if not calls(flat, "aten.reshape") or not shape or not rows or not same_shape(shape[-1:], rows[-1:]):
        return
    source = flat.args[0]
    restored = same_shape(shape_of(source), (*shape[:-1], features))
    # Elsewhere the first reshape is there for its own sake: heads that are merged, windows of an image.
    if not restored and not (len(rows) == 2 and len(shape) == 3):
        return
    # With a size of 0, a -1 could stand for anything.
    if not all(isinstance(size, int) and size > 0 for size in (features, shape[-1])):
        return
    try:
        single_user(layer)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    x = source if restored else _reshaped(node, source, [*arguments(node)["shape"][:-1], features], rewriter)
    bias = () if given["bias"] is None else (given["bias"],)
    rewriter.replace(node, "aten.linear", (x, given["weight"], *bias), {}, origins=[layer], same_type=True)
    erase_unused(rewriter, [layer])


def _as_linear(node: fx.Node, matrix: fx.Node) -> tuple[fx.Node, Argument]:
    """Return x and the bias of a product with `matrix`.

    Raises:
        Refusal: it is no linear layer.
    """
    names = _FACTORS.get(node.target)
    if names is None:
        raise Refusal(f"its matrix is read by {_reader(node)} too: transposed, it would be a second one")
    found = arguments(node)
    x, value = found[names[0]], tensor_of(found[names[0]])
    if found[names[1]] is not matrix or x is matrix or value is None:
        raise Refusal(f"its matrix is read by {_reader(node)} as a first factor: transposed, it would be a second one")
    if value.dim() < 2:
        raise Refusal("its first factor is a vector")
    if node.target is not _ADDMM:
        return x, None
    bias = tensor_of(found["self"])
    if not is_number(found["beta"], 1) or not is_number(found["alpha"], 1):
        raise Refusal("it scales its operands")
    if bias is None or not same_shape(bias.shape, matrix.meta["val"].shape[1:]):
        raise Refusal("its bias is not a vector of its outputs")
    return x, found["self"]


def _reader(node: fx.Node) -> str:
    return "an output of the graph" if node.op == "output" else described(node)


def _reshaped(anchor: fx.Node, source: fx.Node, shape: list[Any], rewriter: Rewriter) -> fx.Node:
    """Return `source` in this shape before `anchor`, from a neighbour that reshaped it likewise where there is one."""
    # The newest users only, which keeps a sweep linear.
    for user in islice(reversed(source.users), 8):
        if calls(user, "aten.reshape") and list(arguments(user)["shape"]) == shape and user < anchor:
            return user
    return rewriter.insert(anchor, "aten.reshape", (source, shape))


RULES = (constant_product, linear_between_reshapes)
