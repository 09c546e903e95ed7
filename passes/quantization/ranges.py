"""Observers: from what was seen of a value to the range that its integers cover.

min-max: all that was seen. moving-average: of the batches' extremes (Jacob et al., CVPR 2018). percentile: without the
0.01% that lie farthest from zero (Wu et al., arXiv 2004.09602). entropy: the least Kullback-Leibler divergence
(Migacz, 8-bit Inference with TensorRT, 2017). mse: the least squared error of rounding and clipping together (Banner et
al., Post training 4-bit quantization of convolutional networks for rapid deployment, NeurIPS 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from burnish.compiler.integers import IntegerRules
from burnish.passes.quantization.histograms import Histogram

__all__ = ["OBSERVERS", "Observer", "Parameters", "covered", "parameters"]

Observer = Literal["min-max", "moving-average", "percentile", "entropy", "mse"]

_KEPT = 0.9999
_CANDIDATES = 100
# Fractions of the largest magnitude below which no clipping is tried.
_LEAST = 0.2
# Scales of smaller ranges would overflow when they are inverted.
_TINIEST = 2.0**-90
# Scales have this many digits after the point of the mantissa: the last bits of a sum differ between machines, and the
# text of a Program should not. 0.05% of a range is a thirtieth of one of its 255 steps at the ends.
_DIGITS = 11


@dataclass(frozen=True, slots=True)
class Parameters:
    """x ~ (q - zero_point) * scale, for q from `low` to `high`."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype


def covered(seen: Histogram, observer: Observer, rules: IntegerRules) -> tuple[float, float] | None:
    """Return the range to cover, zero included; None where it was never seen, not finite, or never but zero."""
    if seen.is_empty or not seen.finite or max(-seen.low, seen.high) < _TINIEST:
        return None
    low, high = OBSERVERS[observer](seen, rules)
    return min(low, 0.0), max(high, 0.0)


def parameters(low: float, high: float, rules: IntegerRules) -> Parameters:
    """Return the integers for a range that has zero in it and is not empty."""
    bottom, top = rules.limits
    if rules.symmetric:
        # Of unsigned integers the middle stands for zero, or the lowest where nothing is negative.
        middle = (bottom + top + 1) // 2 if low < 0 else bottom
        middle = 0 if bottom < 0 else middle
        return Parameters(_rounded(max(-low, high) / (top - middle)), middle, bottom, top, rules.activations)
    scale = _rounded((high - low) / (top - bottom))
    zero_point = min(max(bottom + round(-low / scale), bottom), top)
    return Parameters(scale, zero_point, bottom, top, rules.activations)


def _min_max(seen: Histogram, rules: IntegerRules) -> tuple[float, float]:
    return seen.low, seen.high


def _moving_average(seen: Histogram, rules: IntegerRules) -> tuple[float, float]:
    return seen.smooth_low, seen.smooth_high


def _percentile(seen: Histogram, rules: IntegerRules) -> tuple[float, float]:
    magnitudes, order = seen.centers.abs().sort()
    reached = seen.counts[order].cumsum(0) + seen.zeros
    index = int(torch.searchsorted(reached, math.ceil(_KEPT * int(reached[-1]))))
    # To the outer end of the bin.
    return _clipped(seen, float(magnitudes[min(index, len(magnitudes) - 1)]) + 2.0 ** (seen.exponent - 1))


def _mse(seen: Histogram, rules: IntegerRules) -> tuple[float, float]:
    centers, counts = seen.centers, seen.counts.double()

    def error(low: float, high: float) -> float:
        step = _step(low, high, rules)
        inside = float(counts[(centers >= low) & (centers <= high)].sum())
        beyond = (low - centers).clamp(min=0) + (centers - high).clamp(min=0)
        return inside * step * step / 12 + float((counts * beyond.square()).sum())

    return _least(seen, error)


def _entropy(seen: Histogram, rules: IntegerRules) -> tuple[float, float]:
    width, counts = 2.0**seen.exponent, seen.counts.double()
    ends = seen.centers + width / 2

    def error(low: float, high: float) -> float:
        step = _step(low, high, rules)
        # What clips adds to the last bin inside; each integer spreads its mass over the bins that had some.
        inside = (ends > low) & (ends - width <= high)
        reference = counts[inside].clone()
        reference[0] += counts[ends <= low].sum()
        reference[-1] += counts[ends - width > high].sum()
        groups = ((ends[inside] - width / 2) / step).round().long()
        groups -= groups[0].item()
        size = int(groups[-1]) + 1
        mass = torch.zeros(size, dtype=torch.float64).index_add_(0, groups, counts[inside])
        filled = counts[inside] > 0
        bins = torch.zeros(size, dtype=torch.float64).index_add_(0, groups, filled.double())
        spread = torch.where(filled, mass[groups] / bins[groups].clamp(min=1), 0.0)
        # Where the integers have nothing, but what clips went there, half an element stands for it.
        p, q = reference / reference.sum(), spread.clamp(min=0.5) / spread.sum()
        return float(torch.special.xlogy(p, p / q).sum())

    return _least(seen, error)


OBSERVERS: dict[str, Callable[[Histogram, IntegerRules], tuple[float, float]]] = {
    "min-max": _min_max,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
"""By name: the range, from what was seen and the rules of the target."""


def _least(seen: Histogram, error: Callable[[float, float], float]) -> tuple[float, float]:
    """Return the range with the least error; the widest of equal ones."""
    most = max(-seen.low, seen.high)
    found = [_clipped(seen, most * (1 - (1 - _LEAST) * index / _CANDIDATES)) for index in range(_CANDIDATES + 1)]
    return min(found, key=lambda each: error(*each))


def _clipped(seen: Histogram, magnitude: float) -> tuple[float, float]:
    return max(min(seen.low, 0.0), -magnitude), min(max(seen.high, 0.0), magnitude)


def _step(low: float, high: float, rules: IntegerRules) -> float:
    return parameters(low, high, rules).scale


def _rounded(scale: float) -> float:
    mantissa, exponent = math.frexp(max(scale, 2.0**-100))
    return math.ldexp(round(mantissa * 2**_DIGITS), exponent - _DIGITS)
