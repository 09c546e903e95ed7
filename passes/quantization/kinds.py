"""What an operator is to quantization: a layer, something with an integer kernel, an activation, a rearrangement.

Activations have no integer kernel and compute in floats between layers that have one. A rearrangement gives elements
of its input and perhaps zeros, so what is quantized before it is quantized behind it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments, find_operator
from burnish.passes.canonical.types import tensor_of

__all__ = ["CONVOLUTIONS", "LAYERS", "hides_pairs", "kind_of", "operands"]

CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
LAYERS = (*CONVOLUTIONS, "aten.linear", "burnish.linear_act")
"""Operators with a weight. Of `burnish.linear_act` residual and activation stay float."""

_KINDS = {
    **dict.fromkeys(CONVOLUTIONS, "convolution"),
    "aten.linear": "linear",
    "burnish.linear_act": "linear",
    "burnish.multi_head_attention": "attention",
    "aten.add.Tensor": "add",
    "aten.mul.Tensor": "mul",
    "aten.avg_pool2d": "average-pool",
    "aten.adaptive_avg_pool2d": "average-pool",
    "aten.mean.dim": "average-pool",
    "aten.cat": "concat",
    "aten.sigmoid": "sigmoid",
    "aten.elu": "activation",
    "aten.gelu": "activation",
    "aten.hardsigmoid": "activation",
    "aten.hardswish": "activation",
    "aten.mish": "activation",
    "aten.silu": "activation",
    "aten.softplus": "activation",
    "aten.tanh": "activation",
    "burnish.quick_gelu": "activation",
    "aten.leaky_relu": "leaky-relu",
    "aten.relu": "limit",
    "aten.relu6": "limit",
    "aten.clamp": "limit",
    "aten.hardtanh": "limit",
}
_REARRANGEMENTS = (
    "aten.channel_shuffle", "aten.chunk", "aten.clone", "aten.constant_pad_nd", "aten.contiguous", "aten.expand",
    "aten.flatten.using_ints", "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.pad", "aten.permute",
    "aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.reshape", "aten.select.int", "aten.slice.Tensor",
    "aten.split.Tensor", "aten.split_with_sizes", "aten.squeeze", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.transpose.int", "aten.unsqueeze", "aten.view",
)  # fmt: skip
_HIDING = (
    "aten.chunk", "aten.constant_pad_nd", "aten.expand", "aten.pad", "aten.pixel_shuffle", "aten.pixel_unshuffle",
    "aten.select.int", "aten.split.Tensor", "aten.split_with_sizes",
)  # fmt: skip
_HIDING_TARGETS = {find_operator(name) for name in _HIDING}
_BY_TARGET: dict[Any, str] = {
    **{find_operator(name): kind for name, kind in _KINDS.items()},
    **{find_operator(name): "rearrangement" for name in _REARRANGEMENTS},
}
_MEAN = find_operator("aten.mean.dim")
_ADAPTIVE = find_operator("aten.adaptive_avg_pool2d")
_PADS = {find_operator("aten.pad"), find_operator("aten.constant_pad_nd")}


def kind_of(node: fx.Node) -> str | None:
    """Return the kind of an operator on float32 tensors; None where it has to compute in floats."""
    if node.target is operator.getitem:
        return _BY_TARGET.get(node.all_input_nodes[0].target)
    kind = _BY_TARGET.get(node.target)
    if kind is None or (kind != "rearrangement" and not _is_float(node)):
        return None
    given = arguments(node)
    if kind in ("add", "mul"):
        both = all(_is_float(each) and each.op != "get_attr" for each in (given["self"], given["other"]))
        return kind if both and given.get("alpha", 1) == 1 else None
    if kind == "concat":
        return kind if all(_is_float(each) for each in given["tensors"]) else None
    if node.target is _MEAN:
        rank = given["self"].meta["val"].dim()
        spatial = sorted(each % rank for each in given["dim"] or ()) == list(range(2, rank))
        return kind if spatial and rank == 4 else None
    if node.target is _ADAPTIVE:
        return kind if list(given["output_size"]) == [1, 1] else None
    if node.target in _PADS:
        zeros = given.get("mode", "constant") == "constant" and not given["value"]
        return kind if zeros else None
    return kind


def hides_pairs(node: fx.Node) -> bool:
    """Tell whether some runtimes do not look for pairs before `node`, a rearrangement; parts of a split count.

    They take a padding into the convolutions that read it.
    """
    if node.target in _PADS and all(kind_of(user) == "convolution" for user in node.users):
        return False
    maker = node.all_input_nodes[0] if node.target is operator.getitem else node
    return maker.target in _HIDING_TARGETS and isinstance(node.meta["val"], torch.Tensor)


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that an operator of some kind computes with; of layers without weight and bias.

    Of an attention these are queries and keys: most of its scores would be zero in 8 bits.
    """
    if kind_of(node) in ("convolution", "linear"):
        return [arguments(node)["input"]]
    if kind_of(node) == "attention":
        return [arguments(node)[name] for name in ("query", "key")]
    return [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), (torch.Tensor, tuple, list))]


def _is_float(value: Any) -> bool:
    found = tensor_of(value)
    return found is not None and found.dtype == torch.float32
