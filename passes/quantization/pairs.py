"""Writes quantize and dequantize operators into a graph."""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.quantization.schemes import Quantized, Scheme

__all__ = ["dequantized_constant", "quantized_at_run_time"]

# A float32 of this distance to zero has no digits to lose: the range of an activation that is all zeros.
_EPS = float(torch.finfo(torch.float32).eps)


def dequantized_constant(rewriter: Rewriter, anchor: fx.Node, constant: fx.Node, given: Quantized) -> fx.Node:
    """Insert before `anchor` the dequantization of a quantized constant, stored as `<name>.integers` and `.scales`.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        constant: the floating-point constant that it stands for.
        given: its integers, symmetric.
    """
    graph, name = anchor.graph, name_of(constant)
    values = rewriter.set_constant(graph, f"{name}.integers", given.values, [constant])
    scales = rewriter.set_constant(graph, f"{name}.scales", given.scales, [constant])
    limits = torch.iinfo(given.values.dtype)
    args = (values, scales, None, given.axis, limits.min, limits.max, given.values.dtype)
    return rewriter.insert(
        anchor,
        "quantized_decomposed.dequantize_per_channel",
        args,
        name=f"{name}.dequantize",
        origins=[constant, anchor],
    )


def quantized_at_run_time(rewriter: Rewriter, anchor: fx.Node, value: fx.Node, scheme: Scheme) -> fx.Node:
    """Insert before `anchor` the pair for `value`, over the range of each call; return the dequantization.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        value: float32.
        scheme: per tensor.
    """
    name, limits = name_of(value), (scheme.low, scheme.high)

    def insert(kind: str, args: tuple[object, ...], label: str) -> fx.Node:
        target = kind if kind == "getitem" else f"quantized_decomposed.{kind}"
        return rewriter.insert(anchor, target, args, name=f"{name}.{label}", origins=[value, anchor])  # type: ignore[arg-type]

    chosen = insert("choose_qparams.tensor", (value, *limits, _EPS, scheme.dtype), "range")
    scale = insert("getitem", (chosen, 0), "scale")
    zero_point = insert("getitem", (chosen, 1), "zero_point")
    integers = insert("quantize_per_tensor.tensor", (value, scale, zero_point, *limits, scheme.dtype), "quantize")
    return insert("dequantize_per_tensor.tensor", (integers, scale, zero_point, *limits, scheme.dtype), "dequantize")
