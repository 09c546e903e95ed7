"""The layers of a frozen module on the kernels of oneDNN, their weights packed for this processor.

The packed weights stay in memory: a file that holds them would run on one kind of processor alone. Residuals and
activations stay the in-place operators of ATen that follow: the kernels' own relu and clamp turn NaN into a number.

Not handled, and left as they are: weights that are no constants, other types than float32, convolutions whose weights
are not stored channels-last (`layout` chooses them), processors without AVX2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["packed_call", "runs_packed"]

_PROCESSORS = ("AVX2", "AVX512")


def runs_packed() -> bool:
    """Tell whether this process, as it is set now, may run packed layers."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() not in _PROCESSORS:
        return False
    # Autocast casts the operands of ATen's layers, and does not know these kernels.
    return bool(mkldnn.enabled) and not torch.is_autocast_enabled("cpu")


def packed_call(module: torch.jit.ScriptModule) -> Callable[..., Any]:
    """Return what is called like `module` and computes the same with packed layers; `module` where there are none.

    State is that of `module`, which stays as it is.
    """
    graph: Any = module.graph.copy()
    layers = [node for kind in _PACK for node in graph.findAllNodes(kind, True)]
    packed = sum(_PACK[node.kind()](graph, node) for node in layers)
    if not packed:
        return module
    function: Any = torch._C._create_function_from_graph("forward", graph)
    return lambda *inputs: function(module, *inputs)


def _pack_linear(graph: Any, node: Any) -> bool:
    """Replace a linear layer; tell whether it could be packed."""
    x, weight, bias = node.inputs()
    stored = _constant(weight)
    if not _is_weight(stored, 2) or not stored.is_contiguous():
        return False
    # None: for any number of rows.
    packed = torch.ops.mkldnn._reorder_linear_weight(stored, None)
    graph.setInsertPoint(node)
    operands = [x, _packed(graph, packed), bias, *_no_activation(graph)]
    _replace(graph, node, "mkldnn::_linear_pointwise", operands)
    return True


def _pack_convolution(graph: Any, node: Any) -> bool:
    """Replace a convolution; tell whether it could be packed."""
    x, weight, bias, stride, padding, dilation, *rest = node.inputs()
    groups = rest[-1] if node.kind() == "aten::conv2d" else rest[2]
    stored = _constant(weight)
    sizes = [_integers(each) for each in (padding, stride, dilation)]
    if not _is_weight(stored, 4) or not _is_channels_last(stored) or None in sizes or _constant(groups) is None:
        return False
    if node.kind() == "aten::convolution" and _constant(rest[0]) is not False:
        return False
    packed = torch.ops.mkldnn._reorder_convolution_weight(stored, *sizes, _constant(groups), None)
    graph.setInsertPoint(node)
    operands = [x, _packed(graph, packed), bias, padding, stride, dilation, groups, *_no_activation(graph)]
    _replace(graph, node, "mkldnn::_convolution_pointwise", operands)
    return True


_PACK: dict[str, Callable[[Any, Any], bool]] = {
    "aten::linear": _pack_linear,
    "aten::conv2d": _pack_convolution,
    "aten::convolution": _pack_convolution,
}


def _is_weight(value: Any, rank: int) -> bool:
    return (
        isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.dim() == rank and value.numel() > 0
    )


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


def _packed(graph: Any, weight: torch.Tensor) -> Any:
    """Insert `weight` as a constant; a plain one would be compared and printed by its elements."""
    node = graph.create("prim::ConstantMKLDNNTensor")
    node.t_("value", weight)
    return graph.insertNode(node).output()


def _no_activation(graph: Any) -> list[Any]:
    """Insert the three arguments that say which activation the kernel applies."""
    scalars = graph.create("prim::ListConstruct", [], 1)
    scalars.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
    return [graph.insertConstant("none"), graph.insertNode(scalars).output(), graph.insertConstant("")]


def _replace(graph: Any, node: Any, kind: str, operands: list[Any]) -> None:
    new = graph.insertNode(graph.create(kind, operands, 1))
    # The line of the source, by which the profile finds the node of the Program.
    new.copyMetadata(node)
    node.output().replaceAllUsesWith(new.output())
    node.destroy()
