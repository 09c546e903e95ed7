"""The layers of TorchScript's graphs on the kernels of oneDNN, their weights packed for this processor.

In bfloat16 a smooth activation behind a layer is part of the kernel, which then rounds once instead of twice. In
float32, where that saves no rounding, and for relu and clamp, which turn NaN into a number in these kernels, it stays
the in-place operator of ATen that follows; so does a residual.

Not handled, and left as they are: weights that are no constants, other types than float32 and bfloat16, bfloat16 where
oneDNN does not take it, convolutions whose weights are not stored channels-last (`layout` chooses them) and those in
branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["observe_sizes", "pack_convolutions", "pack_linears"]

_CONVOLUTIONS = ("aten::conv2d", "aten::convolution")
# Names of the activations that keep NaN in the kernels too.
_ACTIVATIONS = {"aten::gelu": "gelu", "aten::sigmoid": "sigmoid", "aten::silu": "swish", "aten::tanh": "tanh"}
_NO_ACTIVATION = (None, "none", "")


def pack_linears(graph: Any) -> int:
    """Replace the linear layers of `graph` that have kernels; return how many there are."""
    return sum(_pack_linear(graph, node) for node in graph.findAllNodes("aten::linear", True))


def observe_sizes(graph: Any) -> bool:
    """Let `graph` return a tuple: its result, and the size of the input of each convolution that could be packed.

    Tells whether there are any; `graph` stays as it is if not.
    """
    sizes = []
    for node in list(filter(_may_be_packed, graph.nodes())):
        graph.setInsertPoint(node)
        size = graph.insertNode(graph.create("aten::size", [next(node.inputs())], 1)).output()
        size.setType(torch._C.ListType.ofInts())
        sizes.append(size)
    if sizes:
        (result,) = graph.outputs()
        graph.setInsertPoint(graph.return_node())
        both = graph.insertNode(graph.create("prim::TupleConstruct", [result, *sizes], 1)).output()
        both.setType(torch._C.TupleType([result.type(), *(size.type() for size in sizes)]))
        graph.eraseOutput(0)
        graph.registerOutput(both)
    return bool(sizes)


def pack_convolutions(graph: Any, sizes: Sequence[Sequence[int]]) -> None:
    """Replace the convolutions whose inputs `observe_sizes` observed; they are fast at these heights and widths alone.

    How the kernel wants its weight depends on its input's height and width, not on the batch. One that is packed for
    another size may be packed anew in every call, for many times as long (`benchmarks.torch_kernels`).
    """
    found = [node for node in graph.nodes() if _may_be_packed(node)]
    for node, size in zip(found, sizes, strict=True):
        x, weight, bias, stride, padding, dilation, *_ = node.inputs()
        geometry = [_integers(each) for each in (padding, stride, dilation)]
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            _constant(weight), *geometry, _constant(_groups(node)), size
        )
        operands = [x, bias, padding, stride, dilation, _groups(node)]
        _replace(graph, node, "mkldnn::_convolution_pointwise", packed, operands)


def _pack_linear(graph: Any, node: Any) -> bool:
    """Replace a linear layer; tell whether it could be packed."""
    x, weight, bias = node.inputs()
    stored = _constant(weight)
    if not _is_weight(stored, 2) or not stored.is_contiguous():
        return False
    # None: for any number of rows.
    packed = torch.ops.mkldnn._reorder_linear_weight(stored, None)
    _replace(graph, node, "mkldnn::_linear_pointwise", packed, [x, bias])
    return True


def _may_be_packed(node: Any) -> bool:
    """Tell whether `node` is a convolution that has kernels."""
    if node.kind() not in _CONVOLUTIONS:
        return False
    _, weight, _, stride, padding, dilation, *rest = node.inputs()
    if node.kind() == "aten::convolution" and _constant(rest[0]) is not False:
        return False
    stored = _constant(weight)
    numbers = [_integers(each) for each in (padding, stride, dilation)]
    is_fixed = None not in numbers and _constant(_groups(node)) is not None
    return is_fixed and _is_weight(stored, 4) and _is_channels_last(stored)


def _groups(node: Any) -> Any:
    return list(node.inputs())[6 if node.kind() == "aten::conv2d" else 8]


def _is_weight(value: Any, rank: int) -> bool:
    return isinstance(value, torch.Tensor) and _has_kernels(value) and value.dim() == rank and value.numel() > 0


def _has_kernels(weight: torch.Tensor) -> bool:
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _is_channels_last(weight: torch.Tensor) -> bool:
    """Tell whether the strides of `weight` are those of channels-last, and no others."""
    _, channels, height, width = weight.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return weight.stride() == strides != (channels * height * width, height * width, width, 1)


def _constant(value: Any) -> Any:
    return value.toIValue() if value.node().kind() == "prim::Constant" else None


def _integers(value: Any) -> list[int] | None:
    """Return a list of constant integers, or None."""
    if value.node().kind() != "prim::ListConstruct":
        found = _constant(value)
    else:
        found = [_constant(each) for each in value.node().inputs()]
    return found if isinstance(found, list) and all(isinstance(each, int) for each in found) else None


def _replace(graph: Any, node: Any, kind: str, weight: torch.Tensor, operands: list[Any]) -> None:
    """Put the kernel `kind` in the place of the layer `node`, and of the activation behind it where it takes that."""
    activation, name, algorithm = _activation(node) if weight.dtype == torch.bfloat16 else _NO_ACTIVATION
    graph.setInsertPoint(node)
    # A plain constant would be compared and printed by its elements.
    packed = graph.create("prim::ConstantMKLDNNTensor")
    packed.t_("value", weight)
    scalars = graph.create("prim::ListConstruct", [], 1)
    scalars.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
    x, *others = operands
    applied = [graph.insertConstant(name), graph.insertNode(scalars).output(), graph.insertConstant(algorithm)]
    new = graph.insertNode(graph.create(kind, [x, graph.insertNode(packed).output(), *others, *applied], 1))
    # The line of the source, by which the profile finds the node of the Program.
    new.copyMetadata(node)
    for each in (activation, node):
        if each is not None:
            each.output().replaceAllUsesWith(new.output())
            each.destroy()


def _activation(node: Any) -> tuple[Any, str, str]:
    """Return the node of the activation that alone reads the layer `node`, and what the kernels call it."""
    uses = node.output().uses()
    reader = uses[0].user if len(uses) == 1 else None
    if reader is None or reader.kind().rstrip("_") not in _ACTIVATIONS:
        return _NO_ACTIVATION
    name = _ACTIVATIONS[reader.kind().rstrip("_")]
    if name != "gelu":
        return reader, name, ""
    algorithm = _constant(list(reader.inputs())[1])
    return (reader, name, algorithm) if algorithm in ("none", "tanh") else _NO_ACTIVATION
