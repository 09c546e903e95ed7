"""Integers for a weight: int8, symmetric, with one scale for every row, the outputs of a layer.

q = round(x / scale), x ~ q * scale (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018). The scale is such that -128 is not used, and both signs reach as far.
"""

from __future__ import annotations

import torch

__all__ = ["quantized_rows", "row_scales"]

# Scales below this one would overflow when they are inverted.
_SMALLEST = 2.0**-100
# Of a row of zeros: fine enough for its bias, which has steps of this times the scale of the input.
_OF_ZEROS = 2.0**-24


def row_scales(weight: torch.Tensor, bits: int = 8, by_row: bool = True) -> torch.Tensor:
    """Return the scale of every row, float32 [N], of a finite weight [N, ...]; a row of zeros has one too.

    Args:
        weight: what to quantize.
        bits: of the integers.
        by_row: otherwise all rows have the largest of them.
    """
    reach = weight.double().abs().flatten(1).amax(1)
    scales = (reach if by_row else reach.max().expand_as(reach)) / _highest(bits)
    return torch.where(scales > _SMALLEST, scales, _OF_ZEROS).float()


def quantized_rows(weight: torch.Tensor, scales: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Return the integers of a weight [N, ...], int8 of its shape, from -(2 ** (bits - 1) - 1) to 2 ** (bits - 1) - 1.

    Args:
        weight: what to quantize.
        scales: [N].
        bits: of the integers.
    """
    divisors = scales.double().reshape(-1, *[1] * (weight.dim() - 1))
    highest = _highest(bits)
    return (weight.double() / divisors).round().clamp(-highest, highest).to(torch.int8)


def _highest(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1
