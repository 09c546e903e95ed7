"""Zeros around the input of a Conv become the Conv's own, which may differ from side to side: no copy of the input.

ONNX Runtime does the same between floats (Pad_Fusion, seen in 1.31), not where the Pad stands between quantized
values. A zero is the same number before and behind a QuantizeLinear and its DequantizeLinear.

Not handled: a Pad of other dimensions than the spatial ones, one that cuts, and one that is computed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["pads_into_convolutions", "remove_unused"]


def pads_into_convolutions(graph: ir.Graph) -> None:
    """Let every Conv pad for itself what it reads from a Pad of zeros; that stays where something else reads it."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Conv" or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        pad = _pad_before(node)
        more = None if pad is None else _amounts(pad)
        if pad is None or more is None:
            continue
        before = node.attributes.get_ints("pads", [0] * len(more))
        node.attributes["pads"] = ir.AttrInt64s("pads", [own + each for own, each in zip(before, more, strict=True)])
        last = node.inputs[0]
        node.replace_input_with(0, pad.inputs[0])
        remove_unused(last)


def _pad_before(conv: ir.Node) -> ir.Node | None:
    """Return the Pad whose result `conv` reads, by way of a pair that quantizes as what the Pad reads or not."""
    made = _maker(conv.inputs[0])
    if made is None or made.op_type == "Pad":
        return made
    quantize = _maker(made.inputs[0]) if made.op_type == "DequantizeLinear" else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    pad = _maker(quantize.inputs[0])
    source = _maker(pad.inputs[0]) if pad is not None and pad.op_type == "Pad" else None
    if source is None or source.op_type != "DequantizeLinear":
        return None
    numbers = [[_held(each) for each in pair.inputs[1:3]] for pair in (source, quantize, made)]
    same = all(len(each) == 2 and _equal(each, numbers[0]) for each in numbers)
    return pad if same and all(each is not None and each.size == 1 for each in numbers[0]) else None


def _amounts(pad: ir.Node) -> list[int] | None:
    """Return the zeros at the beginning and at the end of every spatial dimension, as Conv has them."""
    value = pad.inputs[0]
    rank = None if value is None or value.shape is None else len(value.shape)
    given = [*pad.inputs[1:], None, None, None][:3]
    pads, filling = _held(given[0]), _held(given[1])
    if (
        rank is None
        or pads is None
        or given[2] is not None
        or pad.attributes.get_string("mode", "constant") != "constant"
    ):
        return None
    if pads.size != 2 * rank or (given[1] is not None and (filling is None or bool(np.any(filling != 0)))):
        return None
    begins, ends = pads[:rank].tolist(), pads[rank:].tolist()
    if any(begins[:2]) or any(ends[:2]) or min(begins + ends) < 0:
        return None
    return [*begins[2:], *ends[2:]]


def _equal(left: list[np.ndarray | None], right: list[np.ndarray | None]) -> bool:
    return all(
        a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(left, right, strict=True)
    )


def _held(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def remove_unused(value: ir.Value | None) -> None:
    """Remove what makes `value` where nothing reads it, and what only that has read."""
    made = _maker(value)
    if made is None or made.graph is None or any(each.uses() or each.is_graph_output() for each in made.outputs):
        return
    sources = list(made.inputs)
    made.graph.remove(made, safe=True)
    for each in sources:
        remove_unused(each)
