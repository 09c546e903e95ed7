"""Bias correction: what rounding a weight adds to a layer's result on average is taken off its bias.

With the rounded weight Wq, a layer's result is off by (Wq - W) x, on average over the data by (Wq - W) E[x], which
needs no more than the mean of every input channel (Nagel et al., arXiv 1906.04721, section 4.2). Its own bias takes
that, or the bias of a sum with a norm behind it, or a new bias.

Not handled: the shift that rounding activations causes; the borders of a convolution, where fewer taps meet the input.
"""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.operators import arguments, find_operator
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.fusion.matching import only_user

__all__ = ["ChannelMean", "bias_holder", "corrected_bias"]

_SKIP_NORMS = {find_operator(f"burnish.{name}") for name in ("skip_layer_norm", "skip_rms_norm")}


class ChannelMean:
    """The mean of every channel of a value over the calibration data.

    Args:
        dim: the dimension of the channels.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._sum: torch.Tensor | float = 0.0
        self._count = 0

    def add(self, value: torch.Tensor) -> None:
        """Count a value."""
        if value.numel():
            by_channel = value.detach().movedim(self.dim, 0).reshape(value.shape[self.dim], -1)
            self._sum = self._sum + by_channel.sum(1, dtype=torch.float64)
            self._count += by_channel.shape[1]

    @property
    def value(self) -> torch.Tensor | None:
        """The mean, float64 [C]; None where nothing was seen, or a channel is not finite."""
        if not self._count or not isinstance(self._sum, torch.Tensor) or not bool(self._sum.isfinite().all()):
            return None
        return self._sum / self._count


def corrected_bias(
    layer: AffineLayer, error: torch.Tensor, mean: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the bias that takes up the mean shift of a layer's result, float32 [O].

    Args:
        layer: with its weight as it was.
        error: rounded weight less weight, in the layer's own layout, float64.
        mean: of every input channel, float64 [C].
        bias: as it was, [O] or None.
    """
    taps = layer.split(error).sum(3)
    shift = (taps * mean.reshape(layer.groups, 1, -1)).sum(2).flatten()
    return (-shift if bias is None else bias.double() - shift).float()


def bias_holder(layer: fx.Node) -> tuple[fx.Node, str]:
    """Return what adds the bias of `layer`, a norm of a sum behind it perhaps, and the name of the argument."""
    behind = only_user(layer)
    if arguments(layer)["bias"] is None and behind is not None and behind.target in _SKIP_NORMS:
        given = arguments(behind)
        if given["input"] is layer and given["skip"] is not layer:
            return behind, "input_bias"
    return layer, "bias"
