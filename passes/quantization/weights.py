"""Integers for a weight: int8, symmetric, with one scale for every row.

q = round(x / scale), x ~ q * scale (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018). The scale is such that -128 is not used, and both signs reach as far.
"""

from __future__ import annotations

import torch

__all__ = ["quantized_rows"]

_HIGHEST = 127
# Scales below this one would overflow when they are inverted.
_SMALLEST = 2.0**-100


def quantized_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers (int8, of the shape of `weight`) and the scales (float32, [N]) of a finite weight [N, K]."""
    wide = weight.double()
    scales = wide.abs().amax(1) / _HIGHEST
    # A row of zeros needs some scale.
    scales = torch.where(scales > _SMALLEST, scales, 1.0).float()
    integers = (wide / scales.double().unsqueeze(1)).round().clamp(-_HIGHEST, _HIGHEST)
    return integers.to(torch.int8), scales
