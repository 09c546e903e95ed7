"""Writes quantize and dequantize operators into a graph."""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.quantization.weights import quantized_rows

__all__ = ["dequantized_constant", "quantized_at_run_time"]

# A float32 of this distance to zero has no digits to lose: the range of an activation that is all zeros.
_EPS = float(torch.finfo(torch.float32).eps)


def dequantized_constant(rewriter: Rewriter, anchor: fx.Node, constant: fx.Node, value: torch.Tensor) -> fx.Node:
    """Insert before `anchor` the dequantization of a weight, stored as int8 `<name>.integers` and `<name>.scales`.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        constant: the weight that it stands for.
        value: what that holds, [N, K].
    """
    graph, name = anchor.graph, name_of(constant)
    integers, scales = quantized_rows(value)
    held = [
        rewriter.set_constant(graph, f"{name}.{label}", each, [constant])
        for label, each in (("integers", integers), ("scales", scales))
    ]
    args = (*held, None, 0, -128, 127, torch.int8)
    return rewriter.insert(
        anchor,
        "quantized_decomposed.dequantize_per_channel",
        args,
        name=f"{name}.dequantize",
        origins=[constant, anchor],
    )


def quantized_at_run_time(rewriter: Rewriter, anchor: fx.Node, value: fx.Node) -> fx.Node:
    """Insert before `anchor` the uint8 pair for `value`, over the range of each call; return the dequantization.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        value: float32.
    """
    name, limits = name_of(value), (0, 255)

    def insert(kind: str, args: tuple[object, ...], label: str) -> fx.Node:
        target = kind if kind == "getitem" else f"quantized_decomposed.{kind}"
        return rewriter.insert(anchor, target, args, name=f"{name}.{label}", origins=[value, anchor])  # type: ignore[arg-type]

    chosen = insert("choose_qparams.tensor", (value, *limits, _EPS, torch.uint8), "range")
    scale = insert("getitem", (chosen, 0), "scale")
    zero_point = insert("getitem", (chosen, 1), "zero_point")
    integers = insert("quantize_per_tensor.tensor", (value, scale, zero_point, *limits, torch.uint8), "quantize")
    return insert("dequantize_per_tensor.tensor", (integers, scale, zero_point, *limits, torch.uint8), "dequantize")
