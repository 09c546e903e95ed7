"""Convolutions and linear layers seen as one thing: a weight by group, output channel, input channel and tap.

Handles `aten.conv1d/2d/3d` (also with `padding="same"`), `aten.conv_transpose1d/2d/3d`, `aten.convolution` and
`aten.linear`. Not handled: `aten.addmm` and `aten.matmul` (canonicalize makes `aten.linear` of them), the bilinear
and embedding layers, and `aten.linear` with a vector for a weight or with a bias that broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import same_shape

__all__ = ["LAYER_OPERATORS", "AffineLayer", "stem_of"]

_LINEAR = find_operator("aten.linear")
_TRANSPOSED = frozenset(find_operator(f"aten.conv_transpose{suffix}") for suffix in ("1d", "2d.input", "3d.input"))
_CONVOLUTIONS = frozenset(
    find_operator(f"aten.{name}")
    for name in ("conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d", "conv3d.padding", "convolution")
)
LAYER_OPERATORS = frozenset({_LINEAR, *_TRANSPOSED, *_CONVOLUTIONS})


@dataclass(frozen=True, slots=True)
class AffineLayer:
    """One convolution or linear layer, `y = W x + b`.

    Attributes:
        node: the operator.
        weight: the node of W.
        bias: the node of b, or None.
        groups: number of groups; 1 for a linear layer.
        transposed: it is a transposed convolution.
        spatial: number of spatial dimensions; 0 for a linear layer.
    """

    node: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    groups: int
    transposed: bool
    spatial: int

    @staticmethod
    def of(node: fx.Node) -> AffineLayer | None:
        """Return `node` as a layer, or None when it calls no layer's operator, or has constants of other shapes."""
        if node.target not in LAYER_OPERATORS:
            return None
        given = arguments(node)
        if node.target is _LINEAR and not _is_matrix_with_vector(given["weight"], given["bias"]):
            return None
        transposed = node.target in _TRANSPOSED or bool(given.get("transposed", False))
        spatial = 0 if node.target is _LINEAR else given["weight"].meta["val"].dim() - 2
        return AffineLayer(node, given["weight"], given["bias"], given.get("groups", 1), transposed, spatial)

    @property
    def has_batch(self) -> bool:
        """Dimension 0 is the batch and dimension 1 the channels; otherwise channels stand elsewhere."""
        return bool(self.node.meta["val"].dim() == self.spatial + 2)

    def split(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` as [groups, output channels, input channels, taps], channels counted within a group."""
        first, second, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
        by_group = weight.reshape(self.groups, first // self.groups, second, taps)
        return by_group.transpose(1, 2) if self.transposed else by_group

    def join(self, split: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Undo `split`: return a weight of `shape`, the layer's own layout."""
        return (split.transpose(1, 2) if self.transposed else split).reshape(tuple(shape))

    def uneven(self) -> str | None:
        """Say why adding a constant to every input channel is no constant at the output; None when it is one."""
        if self.node.target is _LINEAR:
            return None
        given = arguments(self.node)
        taps = self.weight.meta["val"].shape[2:]
        padding = given.get("padding", 0)
        if self.transposed:
            plain = all(size == 1 for size in taps) and _all(given["stride"], 1) and _all(given["output_padding"], 0)
            return (
                None
                if plain and _all(padding, 0)
                else "is transposed: overlapping taps would spread its shift unevenly"
            )
        inside = all(size == 1 for size in taps) if padding == "same" else padding == "valid" or _all(padding, 0)
        return None if inside else "pads with zeros, which its shift would not reach"

    def with_constants(
        self,
        rewriter: Rewriter,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        origins: Iterable[fx.Node],
        source: fx.Node | None = None,
    ) -> fx.Node:
        """Replace the layer by one with other constants and return it; it keeps its place, its name and its type.

        Args:
            rewriter: makes the change.
            weight: in the layer's own layout; None to keep the weight.
            bias: [output channels]; None to keep the bias, or none where there is none.
            origins: the nodes whose work the new constants do.
            source: the layer's new input; None to keep it.
        """
        graph, origins = self.node.graph, list(origins)
        new_weight, new_bias, name = self.weight, self.bias, stem_of(self.weight, rewriter)
        if weight is not None:
            new_weight = rewriter.set_constant(graph, name, weight, [self.weight, *origins])
        if bias is not None:
            named = stem_of(self.bias, rewriter) if self.bias is not None else _bias_name(name)
            new_bias = rewriter.set_constant(graph, named, bias, [self.bias or self.weight, *origins])
        kwargs = {key: value for key, value in self.node.kwargs.items() if key not in ("input", "weight", "bias")}
        args = (source or arguments(self.node)["input"], new_weight, new_bias, *self.node.args[3:])
        args = args[:2] if args[2:] == (None,) else args
        new = rewriter.replace(self.node, self.node.target, args, kwargs, origins=origins, same_type=True)
        for each in (self.weight, self.bias):
            if each is not None and each.op == "get_attr" and not each.users:
                rewriter.erase(each)
        return new


def _is_matrix_with_vector(weight: fx.Node, bias: fx.Node | None) -> bool:
    """Tell whether a weight is [outputs, inputs], and a bias, where there is one, [outputs]."""
    shape = weight.meta["val"].shape
    return len(shape) == 2 and (bias is None or same_shape(bias.meta["val"].shape, shape[:1]))


def _all(value: Any, wanted: int) -> bool:
    return all(each == wanted for each in value) if isinstance(value, (list, tuple)) else bool(value == wanted)


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}.bias"


def stem_of(constant: fx.Node, rewriter: Rewriter) -> str:
    """Return the name of a constant without the ordinal that an earlier rewrite gave it."""
    name = name_of(constant)
    stem, _, ordinal = name.rpartition("_")
    return stem if ordinal.isdigit() and stem in rewriter.program.constants else name
