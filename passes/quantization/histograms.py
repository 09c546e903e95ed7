"""What is known of a value over the calibration data: extremes, their moving average, and a histogram.

The bins of a histogram are multiples of a power of two that doubles when the range outgrows them, so one pass over the
data is enough, counts are never interpolated, and the order of the data does not matter. Extremes are of all elements;
of a large tensor an even part of them is counted.
"""

from __future__ import annotations

import math

import torch

__all__ = ["Histogram"]

_BINS = 4096
_COUNTED = 2**16
# The weight of a batch in the moving average, as in torch.ao's observers.
_MOMENTUM = 0.01


class Histogram:
    """Counts of the elements of a value.

    Attributes:
        low: the smallest element seen.
        high: the largest.
        smooth_low: the moving average of the batches' smallest elements.
        smooth_high: and of their largest.
        zeros: number of counted elements that are exactly zero.
        finite: no element was NaN or infinite; if one was, nothing else holds.
        exponent: bins are 2 ** exponent wide.
        first: bin 0 of `counts` starts at `first * 2 ** exponent`.
        counts: [bins], int64, without what is exactly zero; empty while nothing else was seen.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.smooth_low = 0.0
        self.smooth_high = 0.0
        self.zeros = 0
        self.finite = True
        self.exponent = -1074
        self.first = 0
        self.counts = torch.zeros(0, dtype=torch.int64)

    @property
    def is_empty(self) -> bool:
        """No element was seen."""
        return self.low > self.high

    @property
    def centers(self) -> torch.Tensor:
        """The middle of every bin, [bins], float64."""
        return (torch.arange(len(self.counts), dtype=torch.float64) + self.first + 0.5) * 2.0**self.exponent

    def add(self, value: torch.Tensor) -> None:
        """Count the elements of a tensor of a floating dtype and any shape."""
        if not self.finite or not value.numel():
            return
        flat = value.detach().flatten().float()
        low, high = (float(each) for each in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        weight = 1.0 if self.is_empty else _MOMENTUM
        self.smooth_low += weight * (low - self.smooth_low)
        self.smooth_high += weight * (high - self.smooth_high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        # An odd step meets every channel and column of a tensor.
        counted = flat[:: len(flat) // _COUNTED | 1]
        others = counted[counted != 0]
        self.zeros += len(counted) - len(others)
        if self.low == self.high == 0:
            return
        self._widen()
        indices = (others * 2.0**-self.exponent).floor().long() - self.first
        self.counts += torch.bincount(indices, minlength=len(self.counts))

    def _widen(self) -> None:
        """Make the bins reach from `low` to `high`, zero included."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        exponent = max(self.exponent, math.ceil(math.log2((high - low) / (_BINS - 2))), -126)
        width = 2.0**exponent
        first, last = math.floor(low / width), math.floor(high / width)
        counts = torch.zeros(last - first + 1, dtype=torch.int64)
        if len(self.counts):
            # Every old bin lies inside one new bin.
            old = torch.arange(self.first, self.first + len(self.counts))
            counts.index_add_(0, (old >> (exponent - self.exponent)) - first, self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts
