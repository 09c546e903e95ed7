"""How numbers become integers: the scheme of a quantizer, its scale and zero point, and quantized constants.

q = clamp(round(x / scale) + zero_point, low, high), x ~ (q - zero_point) * scale (Jacob et al., Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018). Integer ranges are full, so
that exporters need no clip; a symmetric signed scheme scales such that its lowest integer is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["INT8", "INT8_PER_CHANNEL", "UINT8", "Quantized", "Scheme", "parameters", "quantized"]

# Scales below this one would overflow when they are inverted.
_SMALLEST = 2.0**-100


@dataclass(frozen=True, slots=True)
class Scheme:
    """What integers a quantizer gives.

    Attributes:
        dtype: `torch.uint8` or `torch.int8`.
        symmetric: zero stands in the middle of the integers.
        per_channel: one scale for every index of a dimension; else one for the tensor.
    """

    dtype: torch.dtype
    symmetric: bool
    per_channel: bool = False

    @property
    def low(self) -> int:
        """The smallest integer."""
        return torch.iinfo(self.dtype).min

    @property
    def high(self) -> int:
        """The largest integer."""
        return torch.iinfo(self.dtype).max


UINT8 = Scheme(torch.uint8, symmetric=False)
INT8 = Scheme(torch.int8, symmetric=True)
INT8_PER_CHANNEL = Scheme(torch.int8, symmetric=True, per_channel=True)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized constant.

    Attributes:
        values: the integers, of the constant's shape.
        scales: float32, [] or one for every index of `axis`.
        zero_points: int64, of the shape of `scales`.
        axis: the dimension that the scales belong to; None for one scale.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    axis: int | None


def parameters(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales (float32) and zero points (int64) with which `scheme` covers `low` to `high`, and zero.

    Args:
        low: the smallest numbers, of any shape.
        high: the largest numbers, of the same shape.
        scheme: what to quantize to.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    if scheme.symmetric:
        middle = (scheme.low + scheme.high + 1) // 2
        scale = torch.maximum(-low, high) / (scheme.high - middle)
        zero_point = torch.full_like(scale, middle)
    else:
        scale = (high - low) / (scheme.high - scheme.low)
        zero_point = scheme.low - torch.where(scale > 0, low / scale.clamp(min=_SMALLEST), 0.0)
    # float32 is what runtimes hold; a quantizer of zeros needs some scale.
    scale = torch.where(scale > _SMALLEST, scale, 1.0).float()
    return scale, zero_point.round().clamp(scheme.low, scheme.high).long()


def quantized(value: torch.Tensor, scheme: Scheme, axis: int | None = None) -> Quantized:
    """Quantize a constant over its whole range.

    Args:
        value: a floating-point tensor with finite numbers.
        scheme: what to quantize to; where it is per channel, `axis` says which dimension.
        axis: the dimension of the channels.
    """
    if not scheme.per_channel or axis is None:
        low, high = torch.aminmax(value) if value.numel() else (value.new_zeros(()), value.new_zeros(()))
        scales, zero_points = parameters(low, high, scheme)
        return Quantized(_integers(value, scales, zero_points, scheme), scales, zero_points, None)
    flat = value.movedim(axis, 0).reshape(value.shape[axis], -1)
    scales, zero_points = parameters(flat.amin(1), flat.amax(1), scheme)
    shape = [-1 if index == axis % value.dim() else 1 for index in range(value.dim())]
    values = _integers(value, scales.reshape(shape), zero_points.reshape(shape), scheme)
    return Quantized(values, scales, zero_points, axis % value.dim())


def _integers(value: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    wide = (value.double() / scales.double()).round() + zero_points
    return wide.clamp(scheme.low, scheme.high).to(scheme.dtype)
