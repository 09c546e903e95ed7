"""Writes quantize and dequantize operators into a graph."""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.quantization.ranges import Parameters

__all__ = ["dequantized_constant", "quantized", "quantized_at_run_time"]

# A float32 of this distance to zero has no digits to lose: the range of an activation that is all zeros.
_EPS = float(torch.finfo(torch.float32).eps)


def dequantized_constant(
    rewriter: Rewriter, anchor: fx.Node, name: str, origin: fx.Node, integers: torch.Tensor, scales: torch.Tensor
) -> fx.Node:
    """Insert before `anchor` the dequantization of a weight or bias, stored as `<name>.integers` and `<name>.scales`.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        name: of the weight or bias.
        origin: the constant that it stands for, or the operator that gets it.
        integers: int8 or int32, [N, ...].
        scales: float32, [N].
    """
    held = [
        rewriter.set_constant(anchor.graph, f"{name}.{label}", each, [origin])
        for label, each in (("integers", integers), ("scales", scales))
    ]
    limits = torch.iinfo(integers.dtype)
    args = (*held, None, 0, limits.min, limits.max, integers.dtype)
    made = f"{name}.dequantize"
    return rewriter.insert(
        anchor, "quantized_decomposed.dequantize_per_channel", args, name=made, origins=[origin, anchor]
    )


def quantized(rewriter: Rewriter, value: fx.Node, parameters: Parameters) -> fx.Node:
    """Insert behind `value` the pair with numbers known now; return the dequantization."""
    anchor = value.next
    while anchor.op == "placeholder":
        anchor = anchor.next
    numbers = (parameters.scale, parameters.zero_point, parameters.low, parameters.high, parameters.dtype)
    integers = _insert(rewriter, anchor, value, "quantize_per_tensor", (value, *numbers), "quantize")
    return _insert(rewriter, anchor, value, "dequantize_per_tensor", (integers, *numbers), "dequantize")


def quantized_at_run_time(rewriter: Rewriter, anchor: fx.Node, value: fx.Node) -> fx.Node:
    """Insert before `anchor` the uint8 pair for `value`, over the range of each call; return the dequantization.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        value: float32.
    """
    limits = (0, 255)
    given = (value, *limits, _EPS, torch.uint8)
    chosen = _insert(rewriter, anchor, value, "choose_qparams.tensor", given, "range")
    scale = rewriter.insert(anchor, "getitem", (chosen, 0), name=f"{name_of(value)}.scale", origins=[value, anchor])
    point = rewriter.insert(
        anchor, "getitem", (chosen, 1), name=f"{name_of(value)}.zero_point", origins=[value, anchor]
    )
    numbers = (scale, point, *limits, torch.uint8)
    integers = _insert(rewriter, anchor, value, "quantize_per_tensor.tensor", (value, *numbers), "quantize")
    return _insert(rewriter, anchor, value, "dequantize_per_tensor.tensor", (integers, *numbers), "dequantize")


def _insert(
    rewriter: Rewriter, anchor: fx.Node, value: fx.Node, kind: str, args: tuple[object, ...], label: str
) -> fx.Node:
    name, target = f"{name_of(value)}.{label}", f"quantized_decomposed.{kind}"
    return rewriter.insert(anchor, target, args, name=name, origins=[value, anchor])  # type: ignore[arg-type]
