"""Writes quantize and dequantize operators into a graph."""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.quantization.ranges import Parameters
from burnish.passes.quantization.weights import quantized_rows

__all__ = ["dequantized_bias", "dequantized_constant", "quantized", "quantized_at_run_time"]

# A float32 of this distance to zero has no digits to lose: the range of an activation that is all zeros.
_EPS = float(torch.finfo(torch.float32).eps)
_INT32 = 2**31 - 1


def dequantized_constant(
    rewriter: Rewriter, anchor: fx.Node, constant: fx.Node, value: torch.Tensor, bits: int = 8, by_row: bool = True
) -> fx.Node:
    """Insert before `anchor` the dequantization of a weight, stored as int8 `<name>.integers` and `<name>.scales`.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        constant: the weight that it stands for.
        value: what that holds, [N, ...].
        bits: see `quantized_rows`, as for `by_row`.
        by_row: a scale for every row; otherwise all have one.
    """
    integers, scales = quantized_rows(value, bits, by_row)
    return _dequantized(rewriter, anchor, constant, integers, scales)


def dequantized_bias(
    rewriter: Rewriter, anchor: fx.Node, constant: fx.Node, value: torch.Tensor, scales: torch.Tensor
) -> fx.Node | None:
    """Insert before `anchor` the dequantization of a bias, stored as int32; None where it needs more digits.

    Args:
        rewriter: makes the change.
        anchor: the node to insert before.
        constant: the bias that it stands for.
        value: what that holds, [N].
        scales: of the sums that it is added to, those of input and weight multiplied, [N].
    """
    integers = (value.double() / scales.double()).round()
    if not bool((integers.abs() <= _INT32).all()):
        return None
    return _dequantized(rewriter, anchor, constant, integers.to(torch.int32), scales)


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


def _dequantized(
    rewriter: Rewriter, anchor: fx.Node, constant: fx.Node, integers: torch.Tensor, scales: torch.Tensor
) -> fx.Node:
    graph, name = anchor.graph, name_of(constant)
    held = [
        rewriter.set_constant(graph, f"{name}.{label}", each, [constant])
        for label, each in (("integers", integers), ("scales", scales))
    ]
    limits = torch.iinfo(integers.dtype)
    args = (*held, None, 0, limits.min, limits.max, integers.dtype)
    return _insert(rewriter, anchor, constant, "dequantize_per_channel", args, "dequantize")


def _insert(
    rewriter: Rewriter, anchor: fx.Node, value: fx.Node, kind: str, args: tuple[object, ...], label: str
) -> fx.Node:
    name, target = f"{name_of(value)}.{label}", f"quantized_decomposed.{kind}"
    return rewriter.insert(anchor, target, args, name=name, origins=[value, anchor])  # type: ignore[arg-type]
