"""Which convolutions run channels-last, and who may read their results as they lie in memory.

The kernels of convolutions compute channels-last: with weights stored in that order, and with results handed on as they
are, nothing is reordered between the layers. Operators of `_KEEPING` take such a tensor and return such a tensor;
everything else, the outputs of the graph included, reads a contiguous copy, for a `view` may refuse other strides.

Not handled: 1-d and 3-d convolutions, transposed ones, those in branches of `cond`, weights that a run computes or
updates, and other types than float32 and bfloat16; these stay as they are. So does a program that reads strides itself.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import calls
from burnish.compiler.operators import argument, arguments, find_operator, operator_name
from burnish.compiler.program import Program

__all__ = ["Layout", "plan_layout"]

_CONVOLUTIONS = (
    torch.ops.aten.conv2d.default,
    torch.ops.aten.convolution.default,
    find_operator("burnish.conv_act"),
)
_KEEPING = frozenset(
    f"aten.{name}"
    for name in (
        *("conv2d", "convolution", "batch_norm", "group_norm", "cat"),
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "mean"),
        *("add", "sub", "mul", "div", "maximum", "minimum", "neg", "abs", "exp", "sqrt", "rsqrt", "pow"),
        *("relu", "relu6", "clamp", "clamp_min", "clamp_max", "hardtanh", "sigmoid", "tanh", "silu", "gelu"),
        *("hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus"),
        *("slice", "split", "split_with_sizes", "chunk", "pad", "constant_pad_nd"),
        *("quantize_per_tensor", "dequantize", "int_repr", "to"),
    )
)
_TYPES = (torch.float32, torch.bfloat16)
_STRIDE_READERS = frozenset({"aten.as_strided", "aten.sym_stride", "aten.sym_storage_offset"})
# Integer kernels order their results as they like, whatever the weights.
_REORDERING = ("quantized.conv", "quantized.add", "quantized.mul", "quantized.cat")
_UNARY = ("quantized.sigmoid", "quantized.leaky_relu", "quantized.hardswish")
_TO_CHANNELS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True, slots=True)
class Layout:
    """What `plan_layout` returns.

    Attributes:
        weights: names of the constants to store channels-last, all of shape [O, C / groups, height, width].
        results: nodes whose results may lie channels-last where the model's own are contiguous.
    """

    weights: frozenset[str]
    results: frozenset[fx.Node]

    def is_read_as_is(self, node: fx.Node, reader: fx.Node) -> bool:
        """Tell whether `reader` takes the result of `node` without a contiguous copy."""
        return node not in self.results or reader in self.results or _is_free(reader)


def plan_layout(program: Program) -> Layout:
    """Choose the layout of `program`."""
    graphs = [graph for _, graph in program.all_graphs()]
    fixed = any(_name(node) in _STRIDE_READERS for graph in graphs for node in calls(graph))
    kept = program.mutable_constants()
    weights: set[str] = set()
    shared: set[str] = set()
    for graph in graphs:
        for node in graph.find_nodes(op="get_attr"):
            takes = bool(node.users) and all(_is_convolution(user, node) for user in node.users)
            (weights if takes and str(node.target) not in kept else shared).add(str(node.target))
    weights = set() if fixed else weights - shared
    results: set[fx.Node] = set()
    for graph in graphs:
        for node in calls(graph):
            if (
                any(weight in weights for weight in _weights(node))
                or _name(node).startswith(_REORDERING)
                or (_keeps(node) and not results.isdisjoint(node.all_input_nodes))
            ):
                results.add(node)
    return Layout(frozenset(weights), frozenset(results))


def _weights(node: fx.Node) -> Iterator[str]:
    """Yield the name of the weight of a convolution, if it is a constant."""
    if node.target in _CONVOLUTIONS:
        weight = argument(node, "weight")
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            yield str(weight.target)


def _is_convolution(node: fx.Node, weight: fx.Node) -> bool:
    """Tell whether all that `node` does with `weight` is a convolution of batches of pictures."""
    if node.target not in _CONVOLUTIONS:
        return False
    found = arguments(node)
    if [name for name, value in found.items() if value is weight] != ["weight"] or found.get("transposed"):
        return False
    values = [found["input"].meta["val"], weight.meta["val"]]
    return all(each.dim() == 4 and each.dtype in _TYPES for each in values)


def _keeps(node: fx.Node) -> bool:
    known = _name(node) in _KEEPING or _name(node).startswith(_UNARY)
    return node.target is operator.getitem or node.target in _CONVOLUTIONS or known


def _is_free(node: fx.Node) -> bool:
    """Tell whether a channels-last operand costs `node` nothing and leaves no trace in its result."""
    if node.op != "call_function":
        return False
    is_permutation = _name(node) == "aten.permute" and list(argument(node, "dims")) == _TO_CHANNELS_LAST
    return is_permutation or _name(node) == "aten.sym_size"


def _name(node: fx.Node) -> str:
    """Return the operator of `node` without its overload."""
    target: Any = node.target
    name = operator_name(target)
    return ".".join(name.split(".")[:2]) if name.startswith("aten.") else name
