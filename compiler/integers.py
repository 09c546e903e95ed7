"""IntegerRules: how a runtime wants quantized arithmetic written, so that it uses its integer kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["IntegerRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerRules:
    """Where pairs of quantize and dequantize must stand, and what they may hold. Weights are int8 and symmetric.

    Attributes:
        activations: dtype of quantized activations, uint8 or int8.
        symmetric: activations have zero point 0, unsigned ones 0 or 128.
        results: a layer takes its integer kernel only where its result is quantized too; otherwise what it reads is
            enough.
        skip_only: of a sum of a layer and a shortcut only the shortcut is quantized, and the layer adds it itself;
            otherwise both are.
        operators: kinds of operators besides layers that have integer kernels: "add", "average-pool", "concat",
            "leaky-relu", "mul", "sigmoid".
        shared: kinds of which operands and result must have one scale.
        again: the runtime does not look for pairs beyond selections, splits, expansions, paddings and pixel shuffles:
            behind these they are written again.
        attention: queries and keys of attention over tokens are quantized, to int8 with zero point 0.
        behind_rolls: of what a roll gives, and rearrangements of that, only what a layer reads is quantized.
        smallest: layers with fewer input or output features stay float.
        large_silu: from so many elements a sample silu is faster as an integer sigmoid and product than in floats
            between pairs; None where it never is.
    """

    activations: torch.dtype = torch.uint8
    symmetric: bool = False
    results: bool = True
    skip_only: bool = False
    operators: frozenset[str] = frozenset({"add", "average-pool", "concat", "leaky-relu", "mul", "sigmoid"})
    shared: frozenset[str] = frozenset()
    again: bool = False
    attention: bool = False
    behind_rolls: bool = False
    smallest: int = 1
    large_silu: int | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest quantized activation."""
        return (0, 255) if self.activations == torch.uint8 else (-128, 127)
