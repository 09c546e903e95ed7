"""Writes a layer in integers: its weight, and its bias where the kernel adds that to the sums.

1. Weights become int8, with a scale for every output (or one for all); operators that share a weight share that.
2. Biases become int32 where the layer's result is quantized too.
3. Biases take up what rounding the weights adds on average (see `bias_correction`).
"""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.passes.fusion.matching import only_user
from burnish.passes.quantization.bias_correction import ChannelMean, bias_holder, corrected_bias
from burnish.passes.quantization.kinds import kind_of
from burnish.passes.quantization.makers import channel_dim, layer_of
from burnish.passes.quantization.pairs import dequantized_constant
from burnish.passes.quantization.rescaling import set_argument
from burnish.passes.quantization.weights import quantized_rows, row_scales

__all__ = ["LayerWriter"]

_LARGEST_BIAS = 2.0**30
_SMALLEST_STEP = 2.0**-120


class LayerWriter:
    """Writes the layers of one Program.

    Args:
        rewriter: makes the changes.
        bits: of the weights.
        per_channel: a weight has a scale for every output; otherwise one.
        results: the target takes integer kernels only where results are quantized too.
        means: of what layers read, by value and dimension of the channels; nothing is corrected without.
    """

    def __init__(
        self,
        rewriter: Rewriter,
        bits: int,
        per_channel: bool,
        results: bool,
        means: dict[fx.Node, dict[int, ChannelMean]],
    ) -> None:
        self.rewriter, self.bits, self.per_channel = rewriter, bits, per_channel
        self.results, self.means = results, means
        self.weights: dict[tuple[fx.Node, tuple[float, ...]], tuple[fx.Node, torch.Tensor]] = {}

    def write(self, node: fx.Node, step: float, is_whole: bool) -> None:
        """Quantize weight and bias of a layer.

        Args:
            node: the layer.
            step: the scale of what it reads.
            is_whole: its result is quantized, for all that read it.
        """
        rewriter, given = self.rewriter, arguments(node)
        weight = given["weight"]
        holder, slot = bias_holder(node)
        held, bias = rewriter.constant(weight), arguments(holder)[slot]
        added = rewriter.constant(bias)
        assert held is not None
        scales = row_scales(held, self.bits, self.per_channel)
        # Integer kernels of convolutions and of products of two matrices add the bias to the sums; others give floats.
        # A product of matrices that gives floats to an activation would be joined with that, in floats.
        user = only_user(node)
        joined = user is not None and kind_of(user) in ("limit", "activation", "sigmoid", "leaky-relu")
        joined |= given.get("activation", "none") != "none"
        matrix = self.results and given["input"].meta["val"].dim() == 2 and not joined
        inside = holder is node and (matrix or is_whole)
        if added is not None and holder is node:
            scales = _wide_enough(scales, added, step)
        key = (weight, tuple(scales.tolist()))
        if key not in self.weights:
            integers = quantized_rows(held, scales, self.bits)
            self.weights[key] = (
                dequantized_constant(rewriter, node, name_of(weight), weight, integers, scales),
                integers,
            )
        dequantized, integers = self.weights[key]
        layer, seen = layer_of(node), self.means.get(given["input"], {})
        mean = seen[channel_dim(layer)].value if layer is not None and seen else None
        corrects = layer is not None and mean is not None and (bias is None or added is not None)
        if layer is not None and mean is not None and corrects:
            steps = scales.double().reshape(-1, *[1] * (held.dim() - 1))
            added = corrected_bias(layer, integers.double() * steps - held, mean, added)
        rewriter.redirect(node, weight, dequantized)
        if added is not None and (corrects or inside):
            self._bias(holder, slot, added, scales * step if inside else None)
        for each in (weight, bias):
            if isinstance(each, fx.Node) and not each.users:
                rewriter.erase(each)

    def _bias(self, holder: fx.Node, slot: str, value: torch.Tensor, steps: torch.Tensor | None) -> None:
        """Give `holder` a bias, in int32 where there are `steps`, [O]."""
        rewriter, old = self.rewriter, arguments(holder)[slot]
        name, origin = (f"{name_of(holder)}.{slot}", holder) if old is None else (name_of(old), old)
        if steps is None:
            new = rewriter.set_constant(holder.graph, name, value, [origin])
        else:
            sums = (value.double() / steps.double()).round().to(torch.int32)
            new = dequantized_constant(rewriter, holder, name, origin, sums, steps)
        set_argument(rewriter, holder, slot, new)


def _wide_enough(scales: torch.Tensor, bias: torch.Tensor, step: float) -> torch.Tensor:
    """Return the scales of a weight such that its bias fits into int32, in steps that float32 has.

    A bias that stays float has to fit too: ONNX Runtime quantizes the constant ones, and clips what does not fit.

    Where that changes one, the largest sum of the row is far below what the bias keeps of its own digits.
    """
    least = (bias.double().abs() / (step * _LARGEST_BIAS)).clamp(min=_SMALLEST_STEP / step)
    return torch.maximum(scales, least.float())
