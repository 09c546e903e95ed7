"""Every channel that a depthwise convolution reads comes near the range of the scale that they share.

A depthwise convolution mixes no channels. So a channel of what it reads may be multiplied by 2^k in the layer before,
and divided by 2^k in its own weights: both have a scale for every channel, their integers stay as they are, and the
activation, which has one scale for all, keeps k more bits of that channel. Before depthwise convolutions channels
differ most (Nagel et al., arXiv 1906.04721, section 3.1; `equalize` is for weights with one scale).

A clamp between the two (relu6) stays at its number. A channel times 2^k reaches that earlier, but not on the
calibration data, and quantization clips to their range in any case.

Not handled: activations such as silu, which pass no factor on; what more than depthwise convolutions read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.operators import arguments
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.quantization.makers import Maker, channel_dim, layer_of, maker_of, readers_of
from burnish.passes.quantization.plan import source_of
from burnish.passes.quantization.reach import channel_reach
from burnish.passes.quantization.rescaling import Rescaling

__all__ = ["widen_depthwise_inputs"]

# More bits than these come from channels that are hardly ever anything but zero.
_MOST_BITS = 6


@dataclass(frozen=True, slots=True)
class _Input:
    """What depthwise convolutions read.

    Attributes:
        source: the value that is quantized; pads and pools may stand behind it.
        dim: of its channels.
        maker: what makes it.
        readers: the convolutions.
    """

    source: fx.Node
    dim: int
    maker: Maker
    readers: list[AffineLayer]


def widen_depthwise_inputs(
    program: Program, rewriter: Rewriter, context: Context, quantized: Collection[fx.Node], samples: int
) -> None:
    """Multiply channels by powers of two.

    Args:
        program: what to run on the data; it is changed.
        rewriter: makes the change.
        context: has the data.
        quantized: the values that will be.
        samples: how much of the data to use at the most.

    Raises:
        InputError: there are no calibration data, or they do not fit.
    """
    found = _inputs(rewriter, quantized)
    if not found:
        return
    reaches = channel_reach(program, context, {each.source: each.dim for each in found}, samples, "quantize")
    rescaling = Rescaling(rewriter)
    for each in found:
        maker, seen = each.maker, reaches.get(each.source)
        if seen is not None and bool(seen.isfinite().all()):
            whole, reach = float(seen.max()) if maker.clamp is None else maker.clamp.most, maker.pooled(seen)
            bits = (whole / reach).log2().floor().clamp(0, _MOST_BITS)
            # A channel that is always zero has no bits to keep.
            rescaling.move(maker, each.readers, torch.exp2(-torch.where(reach > 0, bits, 0)))
    rescaling.write()


def _inputs(rewriter: Rewriter, quantized: Collection[fx.Node]) -> list[_Input]:
    found: dict[fx.Node, _Input] = {}
    for node in rewriter.nodes():
        layer = layer_of(node)
        if layer is None or not _is_depthwise(layer):
            continue
        value, dim = arguments(node)["input"], channel_dim(layer)
        source, _ = source_of(value)
        if value in found or source not in quantized:
            continue
        try:
            readers, maker = readers_of(value, rewriter), maker_of(value, dim, rewriter)
        except Refusal:
            continue  # nothing is lost: it is quantized as what other layers read
        clamped = maker.clamp is not None and maker.clamp.node is not source
        if not clamped and all(_is_depthwise(each) for each in readers):
            found[value] = _Input(source, dim, maker, readers)
    return list(found.values())


def _is_depthwise(layer: AffineLayer) -> bool:
    return layer.spatial > 0 and not layer.transposed and 1 < layer.groups == _channels(layer)


def _channels(layer: AffineLayer) -> int:
    size = arguments(layer.node)["input"].meta["val"].shape[channel_dim(layer)]
    assert isinstance(size, int), "a convolution's weight says how many channels it reads"
    return size
