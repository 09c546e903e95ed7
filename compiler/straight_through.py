"""Quantizers as training sees them: they round forward, and hand gradients on where nothing was clipped.

The straight-through estimator of Bengio et al. (2013), as in Jacob et al., Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference (CVPR 2018). Scales and zero points stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import calls
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.program import Program

__all__ = ["Latent", "latents_of", "replace_quantizers", "scales_of"]

_QUANTIZE = "quantized_decomposed.quantize_per_"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_"


@dataclass(frozen=True, slots=True)
class Latent:
    """How a constant of integers is read: the grid that its floats are rounded to.

    Attributes:
        scale: [] or [channels].
        zero: the same shape.
        axis: dimension of the channels; None where there is one scale.
        least: the smallest integer.
        most: the largest.
        dtype: of the integers.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    axis: int | None
    least: int
    most: int
    dtype: torch.dtype

    def floats(self, integers: torch.Tensor) -> torch.Tensor:
        """Return what integers stand for, float32."""
        scale, zero = self._along(integers.dim())
        return ((integers.double() - zero) * scale).float()

    def integers(self, floats: torch.Tensor) -> torch.Tensor:
        """Return the nearest integers."""
        scale, zero = self._along(floats.dim())
        return (floats.double() / scale + zero).round().clamp(self.least, self.most).to(self.dtype)

    def rounded(self, floats: torch.Tensor) -> torch.Tensor:
        """Return the nearest value that integers stand for, with the gradient of `floats`."""
        inside = self.floats(self.integers(floats.detach()))
        return floats + (inside - floats.detach())

    def _along(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.axis is None:
            return self.scale.double(), self.zero.double()
        shape = [-1 if dim == self.axis % rank else 1 for dim in range(rank)]
        return self.scale.double().reshape(shape), self.zero.double().reshape(shape)


def latents_of(program: Program) -> dict[str, Latent]:
    """Return the grids of the constants of integers that one operator reads as floats, by name."""
    found: dict[str, Latent] = {}
    for _, graph in program.all_graphs():
        for node in calls(graph):
            if not operator_name(node.target).startswith(_DEQUANTIZE):
                continue
            given = arguments(node)
            source = given["input"]
            grid = _grid(program, given)
            if grid is not None and source.op == "get_attr" and len(source.users) == 1:
                found[str(source.target)] = grid
    return found


def scales_of(program: Program) -> frozenset[str]:
    """Return the names of the constants that are scales and zero points."""
    return frozenset(
        str(value.target)
        for _, graph in program.all_graphs()
        for node in calls(graph)
        if operator_name(node.target).startswith((_QUANTIZE, _DEQUANTIZE))
        for slot, value in arguments(node).items()
        if slot != "input" and isinstance(value, fx.Node) and value.op == "get_attr"
    )


def replace_quantizers(program: Program, latents: Mapping[str, Latent]) -> None:
    """Let quantizers of `program`, which only training sees, hand gradients on."""
    for _, graph in program.all_graphs():
        for node in calls(graph):
            name = operator_name(node.target)
            if not name.startswith((_QUANTIZE, _DEQUANTIZE)):
                continue
            given = arguments(node)
            source = given["input"]
            grid = _grid(program, given)
            if name.startswith(_DEQUANTIZE):
                if source.op == "get_attr" and str(source.target) in latents:
                    _set(node, latents[str(source.target)].rounded, source)
                elif isinstance(source.target, _Clipped):
                    _set(node, _same, source)
            elif grid is not None and all(operator_name(user.target).startswith(_DEQUANTIZE) for user in node.users):
                _set(node, _Clipped(grid), source)


class _Clipped:
    """Rounds to a grid and clips; gradients pass where nothing was clipped."""

    __name__ = "fake_quantize"

    def __init__(self, grid: Latent) -> None:
        self.grid = grid

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        grid = self.grid
        scale, zero = (each.to(value.dtype) for each in grid._along(value.dim()))
        clipped = value.clamp((grid.least - zero) * scale, (grid.most - zero) * scale)
        inside = ((clipped / scale).round() * scale).detach()
        return clipped + (inside - clipped.detach())


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _set(node: fx.Node, function: Any, source: fx.Node) -> None:
    node.target, node.args, node.kwargs = function, (source,), {}


def _grid(program: Program, given: Mapping[str, Any]) -> Latent | None:
    """Return the grid of a (de)quantizer whose scales are known."""
    scale, zero = (_known(program, given.get(names[0], given.get(names[1]))) for names in (
        ("scale", "scales"), ("zero_point", "zero_points"),
    ))  # fmt: skip
    if scale is None:
        return None
    zero = torch.zeros_like(scale) if zero is None else zero
    axis = given.get("axis")
    return Latent(scale, zero, axis, given["quant_min"], given["quant_max"], given["dtype"])


def _known(program: Program, value: Any) -> torch.Tensor | None:
    if isinstance(value, fx.Node):
        return program.constants.get(str(value.target)) if value.op == "get_attr" else None
    return None if value is None else torch.tensor(float(value), dtype=torch.float64)
