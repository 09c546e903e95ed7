"""Rules on quantize and dequantize: other tools' pairs take the form that the passes of quantization write.

1. Numbers that stand in constant tensors are written as numbers.
2. `dequantize` of a weight names the limits of the dtype, as it does not clamp, and no zero points where all are zero.
3. A weight with one scale is dequantized by rows.
4. A pair behind a rearrangement of a value that has the same numbers is nothing.

Not handled: weights with other dimensions than the first for channels, and zero points that are not zero, stay so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, find_operator, operator_name
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.types import same_type

__all__ = ["RULES"]

_PER_TENSOR = "quantized_decomposed.dequantize_per_tensor"
_PER_CHANNEL = "quantized_decomposed.dequantize_per_channel"
_QUANTIZE = "quantized_decomposed.quantize_per_tensor"
_QUANTIZE_OPERATOR = find_operator(_QUANTIZE)
# Each gives elements of its first input, and nothing else.
_MOVES = frozenset(
    find_operator(f"aten.{name}")
    for name in (
        "flatten.using_ints", "max_pool2d", "permute", "reshape", "select.int", "slice.Tensor", "squeeze",
        "squeeze.dim", "squeeze.dims", "transpose.int", "unsqueeze", "view",
    )
)  # fmt: skip


@rule(f"{_QUANTIZE}.tensor", f"{_PER_TENSOR}.tensor", f"{_QUANTIZE}.tensor2", f"{_PER_TENSOR}.tensor2")
def known_numbers(node: fx.Node, rewriter: Rewriter) -> None:
    """Scale and zero point in constants of one element are numbers."""
    given = arguments(node)
    for name in ("scale", "zero_point", "quant_min", "quant_max"):
        held = rewriter.constant(given[name]) if isinstance(given[name], fx.Node) else None
        if held is not None and held.numel() == 1:
            given[name] = held.item()
        if isinstance(given[name], fx.Node):
            return
    name = operator_name(node.target).rpartition(".")[0]
    given["zero_point"] = int(given["zero_point"])
    rewriter.replace(node, name, _in_order(given), _out_dtype(given), same_type=True)


@rule(_PER_TENSOR, _PER_CHANNEL)
def dequantize_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Of a weight, the limits are those of the dtype; zero points of zeros are none; dimensions count from 0."""
    given = arguments(node)
    if not _is_weight(given["input"], rewriter) or given["dtype"].is_floating_point:
        return
    wanted = {**given, **_all_of(given["dtype"])}
    if "axis" in given:
        wanted["axis"] = given["axis"] % given["input"].meta["val"].dim()
        points = rewriter.constant(given["zero_points"])
        if points is not None and not bool(points.any()):
            wanted["zero_points"] = None
    if wanted != given:
        rewriter.replace(node, operator_name(node.target), _in_order(wanted), _out_dtype(wanted), same_type=True)


@rule(_PER_TENSOR)
def weight_by_rows(node: fx.Node, rewriter: Rewriter) -> None:
    """A constant with one scale is dequantized by rows that all have it."""
    given = arguments(node)
    shape = given["input"].meta["val"].shape
    if not _is_weight(given["input"], rewriter) or len(shape) < 2:
        return
    if given["zero_point"] != 0:
        rewriter.skip(node, f"its zero point is {given['zero_point']}, not 0")
        return
    scales = torch.full((int(shape[0]),), given["scale"], dtype=torch.float32)
    name = f"{name_of(given['input']).removesuffix('.integers')}.scales"
    constant = rewriter.set_constant(node.graph, name, scales, [given["input"]])
    args = (given["input"], constant, None, 0, given["quant_min"], given["quant_max"], given["dtype"])
    rewriter.replace(node, _PER_CHANNEL, args, _out_dtype(given), same_type=True)


@rule(_PER_TENSOR)
def drop_pair(node: fx.Node, rewriter: Rewriter) -> None:
    """quantize, then dequantize, of moved elements of a dequantized value with the same numbers is that value."""
    inner = arguments(node)["input"]
    if inner.target is not _QUANTIZE_OPERATOR:
        return
    moved = source = arguments(inner)["input"]
    while source.target in _MOVES:
        source = source.args[0]
    given = arguments(inner)
    if source.target is not node.target or {**given, **_all_of(given["dtype"])} != given:
        return
    numbers = [[arguments(each)[name] for name in ("scale", "zero_point", "dtype")] for each in (source, inner, node)]
    # Wider integers than these do not all survive the way through float32.
    if given["dtype"] not in (torch.uint8, torch.int8) or any(each != numbers[0] for each in numbers):
        return
    if not same_type(moved, node):
        return
    rewriter.replace(node, moved)
    if not inner.users:
        rewriter.erase(inner)


RULES = (known_numbers, dequantize_form, weight_by_rows, drop_pair)


def _is_weight(value: fx.Node, rewriter: Rewriter) -> bool:
    """Tell whether `value` is a constant, or the integers of one."""
    if value.op == "call_function" and operator_name(value.target).startswith("quantized_decomposed.quantize_"):
        value = arguments(value)["input"]
    return rewriter.constant(value) is not None


def _in_order(given: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for name, value in given.items() if name != "out_dtype")


def _out_dtype(given: dict[str, Any]) -> dict[str, Any]:
    return {"out_dtype": given["out_dtype"]} if given.get("out_dtype") is not None else {}


def _all_of(dtype: torch.dtype) -> dict[str, int]:
    limits = torch.iinfo(dtype)
    return {"quant_min": limits.min, "quant_max": limits.max}
