"""Rules that give layers one form: `batch_norm`, `layer_norm`, `group_norm`, `conv2d`, `linear`, `max_pool2d`.

Operators with several results, of which only the first is used, become the operator with that one.

Not handled: a matrix product whose second operand is not written as a transposition stays: transposing the constant
would let the library choose another kernel, which rounds differently.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.types import is_number, repeated, tensor_of

__all__ = ["RULES"]

_CONVOLUTIONS = {
    (False, 1): "aten.conv1d",
    (False, 2): "aten.conv2d",
    (False, 3): "aten.conv3d",
    (True, 1): "aten.conv_transpose1d",
    (True, 2): "aten.conv_transpose2d.input",
    (True, 3): "aten.conv_transpose3d.input",
}


@rule("aten._native_batch_norm_legit_no_training", "aten.native_batch_norm")
def batch_norm_form(node: fx.Node, rewriter: Rewriter) -> None:
    """The first result of a batch norm in evaluation is batch_norm(x, ..., training=False)."""
    found = arguments(node)
    if found.get("training", False):
        rewriter.skip(node, "the batch norm is in training mode")
        return
    names = ("input", "weight", "bias", "running_mean", "running_var")
    args = (*(found[name] for name in names), False, found["momentum"], found["eps"], True)
    _take_first(node, rewriter, "batch norm", "aten.batch_norm", args)


@rule("aten.native_layer_norm")
def layer_norm_form(node: fx.Node, rewriter: Rewriter) -> None:
    """The first result of native_layer_norm is layer_norm."""
    found = arguments(node)
    args = tuple(found[name] for name in ("input", "normalized_shape", "weight", "bias", "eps"))
    _take_first(node, rewriter, "layer norm", "aten.layer_norm", args)


@rule("aten.native_group_norm")
def group_norm_form(node: fx.Node, rewriter: Rewriter) -> None:
    """The first result of native_group_norm is group_norm."""
    found = arguments(node)
    args = tuple(found[name] for name in ("input", "group", "weight", "bias", "eps"))
    _take_first(node, rewriter, "group norm", "aten.group_norm", args)


@rule("aten.max_pool2d_with_indices")
def max_pool_form(node: fx.Node, rewriter: Rewriter) -> None:
    """max_pool2d_with_indices without the indices is max_pool2d."""
    found = arguments(node)
    names = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    _take_first(node, rewriter, "pooling", "aten.max_pool2d", tuple(found[name] for name in names))


@rule("aten.native_dropout")
def native_dropout_form(node: fx.Node, rewriter: Rewriter) -> None:
    """The first result of native_dropout is dropout, which goes in evaluation."""
    found = arguments(node)
    if found["train"] is not False:
        rewriter.skip(node, "dropout is in training mode")
        return
    _take_first(node, rewriter, "dropout", "aten.dropout", (found["input"], found["p"], False))


@rule("aten.convolution")
def convolution_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Convolution is conv1d, conv2d, conv3d or conv_transpose1d, 2d, 3d."""
    found = arguments(node)
    value = tensor_of(found["input"])
    rank = 0 if value is None else value.dim() - 2
    form = _CONVOLUTIONS.get((found["transposed"], rank))
    if form is None:
        rewriter.skip(node, f"there is no convolution over {rank} dimensions")
        return
    names = ["input", "weight", "bias", "stride", "padding"]
    names += ["output_padding", "groups", "dilation"] if found["transposed"] else ["dilation", "groups"]
    rewriter.replace(node, form, tuple(found[name] for name in names), {}, same_type=True)


@rule("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def padding_form(node: fx.Node, rewriter: Rewriter) -> None:
    """padding="valid", and padding="same" where it is even on both sides, are numbers."""
    found = arguments(node)
    weight = tensor_of(found["weight"])
    if weight is None:
        return
    kernel = list(weight.shape[2:])
    dilation = repeated(found["dilation"], len(kernel))
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if found["padding"] == "same" and any(each % 2 for each in reach):
        rewriter.skip(node, "the padding differs between the two sides")
        return
    padding = [each // 2 for each in reach] if found["padding"] == "same" else [0] * len(kernel)
    args = (found["input"], found["weight"], found["bias"], found["stride"], padding, dilation, found["groups"])
    rewriter.replace(node, str(node.target).removesuffix(".padding"), args, {}, same_type=True)


@rule("aten.addmm")
def linear_form(node: fx.Node, rewriter: Rewriter) -> None:
    """addmm(bias, x, transposed w) is linear(x, w, bias)."""
    found = arguments(node)
    weight = _transposed(found["mat2"])
    bias = tensor_of(found["self"])
    if weight is None:
        rewriter.skip(node, "its second matrix is not a transposed one")
    elif not is_number(found["beta"], 1) or not is_number(found["alpha"], 1):
        rewriter.skip(node, "it scales its operands")
    elif bias is None or bias.dim() != 1:
        rewriter.skip(node, "its bias is not a vector")
    else:
        _linear(node, rewriter, (found["mat1"], weight, found["self"]))


@rule("aten.mm", "aten.matmul")
def linear_form_without_bias(node: fx.Node, rewriter: Rewriter) -> None:
    """mm(x, transposed w) is linear(x, w)."""
    left, right = node.args[:2]
    weight, value = _transposed(right), tensor_of(left)
    # A product of two computed matrices (attention scores) is no layer.
    if weight is None or weight.op != "get_attr" or value is None or value.dim() < 2:
        return
    _linear(node, rewriter, (left, weight))


def _linear(node: fx.Node, rewriter: Rewriter, args: tuple[Argument, ...]) -> None:
    transposition = node.args[2 if node.target is torch.ops.aten.addmm.default else 1]
    rewriter.replace(node, "aten.linear", args, {}, same_type=True)
    if isinstance(transposition, fx.Node) and not transposition.users:
        rewriter.erase(transposition)


def _transposed(value: Any) -> fx.Node | None:
    """Return the matrix of which `value` is the transposition."""
    if not isinstance(value, fx.Node) or value.target is not torch.ops.aten.permute.default:
        return None
    source, dims = value.args[0], value.args[1]
    return source if isinstance(source, fx.Node) and list(dims) == [1, 0] else None  # type: ignore[arg-type]


def _take_first(node: fx.Node, rewriter: Rewriter, what: str, form: str, args: tuple[Argument, ...]) -> None:
    users = list(node.users)
    results: set[Any] = {user.args[1] if user.target is operator.getitem else None for user in users}
    if results != {0}:
        used = sorted(each for each in results if each is not None and each != 0)
        rewriter.skip(node, f"result {used[0]} of the {what} is used" if used else f"no result of the {what} is used")
        return
    # The results take the operator's own name, as if it had had one result all along.
    for user in users:
        rewriter.replace(user, node)
    rewriter.replace(node, form, args, {}, origins=users, like=users[0])


RULES = (
    batch_norm_form,
    layer_norm_form,
    group_norm_form,
    max_pool_form,
    native_dropout_form,
    convolution_form,
    padding_form,
    linear_form,
    linear_form_without_bias,
)
