"""Integers for a weight: int8, symmetric, with one scale for every row, the outputs of a layer.

q = round(x / scale), x ~ q * scale (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018). The scale is such that -128 is not used, and both signs reach as far.
"""

from __future__ import annotations

import torch

__all__ = ["quantized_rows"]

# Scales below this one would overflow when they are inverted.
_SMALLEST = 2.0**-100


def quantized_rows(weight: torch.Tensor, bits: int = 8, by_row: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers (int8, of the shape of `weight`) and the scales (float32, [N]) of a finite weight [N, ...].

    Args:
        weight: what to quantize.
        bits: integers reach from -(2 ** (bits - 1) - 1) to 2 ** (bits - 1) - 1.
        by_row: a scale for every row; otherwise all have one.
    """
    highest = 2 ** (bits - 1) - 1
    wide = weight.double()
    reach = wide.abs().flatten(1).amax(1)
    scales = (reach if by_row else reach.max().expand_as(reach)) / highest
    # A row of zeros needs some scale.
    scales = torch.where(scales > _SMALLEST, scales, 1.0).float()
    divisors = scales.double().reshape(-1, *[1] * (weight.dim() - 1))
    return (wide / divisors).round().clamp(-highest, highest).to(torch.int8), scales
