"""Collects factors by channel, and moves them from what makes values into the layers that read them.

Which values can take factors is the business of `makers`; how large they should be is that of the passes. Factors are
powers of two: these change no digit of a weight or a result, however deep the network, and come within a factor of
1.42 of what is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, schema_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.affine_layers import AffineLayer, stem_of
from burnish.passes.canonical.weights import rounded
from burnish.passes.quantization.makers import Maker

__all__ = ["Rescaling", "power_of_two", "set_argument"]


class Rescaling:
    """Factors for the rows and columns of layers and for norms, collected, and written once at the end."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self._layers: dict[fx.Node, _Factors] = {}
        self._norms: dict[fx.Node, torch.Tensor] = {}

    def rows(self, layer: AffineLayer) -> torch.Tensor:
        """Return the largest weight, or the bias, of every output channel as scaled so far, float64 [O]."""
        return self._of(layer).reach_of_rows()

    def columns(self, layer: AffineLayer) -> torch.Tensor:
        """Return the largest weight of every input channel as scaled so far, float64 [I]."""
        return self._of(layer).reach_of_columns()

    def move(self, maker: Maker, readers: Sequence[AffineLayer], factors: torch.Tensor) -> None:
        """Divide what `maker` makes by `factors`, float64 [C], and multiply the weights of `readers` by them.

        Args:
            maker: of the value; channels that share a row of it have one factor.
            readers: all layers that read the value.
            factors: powers of two.
        """
        if isinstance(maker.origin, AffineLayer):
            rows = self._of(maker.origin).rows
        else:
            rows = self._norms.setdefault(maker.origin, torch.ones(len(maker.rows), dtype=torch.float64))
        rows[maker.rows] /= factors
        for each in readers:
            self._of(each).columns.mul_(factors)

    def write(self) -> None:
        """Give layers and norms their new constants."""
        for factors in self._layers.values():
            factors.write(self.rewriter)
        for node, factors_of_norm in self._norms.items():
            if bool((factors_of_norm != 1).any()):
                _scale_norm(node, factors_of_norm, self.rewriter)

    def _of(self, layer: AffineLayer) -> _Factors:
        if layer.node not in self._layers:
            weight, bias = (self.rewriter.constant(each) for each in (layer.weight, layer.bias))
            assert weight is not None
            self._layers[layer.node] = _Factors(layer, weight, bias)
        return self._layers[layer.node]


class _Factors:
    """One layer with the factors of its rows, [O], and columns, [I]."""

    def __init__(self, layer: AffineLayer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.layer, self.weight, self.bias = layer, weight, bias
        self.magnitudes = layer.split(weight.abs()).amax(3)
        groups, rows, columns = self.magnitudes.shape
        self.rows = torch.ones(groups * rows, dtype=torch.float64)
        self.columns = torch.ones(groups * columns, dtype=torch.float64)

    def reach_of_rows(self) -> torch.Tensor:
        by_group = self.magnitudes * self.columns.reshape(self.layer.groups, 1, -1)
        found = by_group.amax(2).flatten()
        return (found if self.bias is None else torch.maximum(found, self.bias.double().abs())) * self.rows

    def reach_of_columns(self) -> torch.Tensor:
        by_group = self.magnitudes * self.rows.reshape(self.layer.groups, -1, 1)
        return by_group.amax(1).flatten() * self.columns

    def write(self, rewriter: Rewriter) -> None:
        layer, shape = self.layer, self.weight.shape
        moved, scaled = bool((self.rows != 1).any()), bool((self.columns != 1).any())
        split = layer.split(self.weight.double()) * self.rows.reshape(layer.groups, -1, 1, 1)
        weight = layer.join(split * self.columns.reshape(layer.groups, 1, -1, 1), shape)
        if moved or scaled:
            _replace(rewriter, layer.node, layer.weight, rounded(weight, self.weight.dtype))
        if moved and self.bias is not None and layer.bias is not None:
            _replace(rewriter, layer.node, layer.bias, rounded(self.bias.double() * self.rows, self.bias.dtype))


def power_of_two(factors: torch.Tensor) -> torch.Tensor:
    """Return the nearest powers of two, on a logarithmic scale, of positive numbers."""
    return torch.exp2(factors.log2().round())


def set_argument(rewriter: Rewriter, node: fx.Node, name: str, value: fx.Node) -> None:
    """Give one argument of `node`, by schema name, another value."""
    target: Any = node.target
    schema, given = schema_of(target), arguments(node)
    assert schema is not None
    end = schema.names.index(name) + 1
    args = (*(given[each] for each in schema.names[: end - 1]), value, *node.args[end:])
    rewriter.set_arguments(node, args, {k: v for k, v in node.kwargs.items() if k not in schema.names[:end]})


def _scale_norm(node: fx.Node, factors: torch.Tensor, rewriter: Rewriter) -> None:
    """Multiply weight and bias of a norm by `factors`, float64 [C]; a norm without weight gets one."""
    value = node.meta["val"]
    dtype = (value[0] if isinstance(value, (tuple, list)) else value).dtype
    for name in ("weight", "bias"):
        old = arguments(node).get(name)
        held = rewriter.constant(old)
        if old is None and name == "weight":
            new = rewriter.set_constant(node.graph, f"{name_of(node)}.weight", factors.to(dtype), [node])
            set_argument(rewriter, node, name, new)
        elif old is not None and held is not None:
            _replace(rewriter, node, old, rounded(held.double() * factors, held.dtype))


def _replace(rewriter: Rewriter, node: fx.Node, old: fx.Node, value: torch.Tensor) -> None:
    """Let `node`, which stays the same node, read another constant of the same type."""
    new = rewriter.set_constant(node.graph, stem_of(old, rewriter), value, [old])
    rewriter.redirect(node, old, new)
    if not old.users:
        rewriter.erase(old)
