"""Spellings without which TensorRT's parser refuses a graph. The meaning is the same, in every runtime.

A Squeeze without axes removes the dimensions of size 1: torch's exporter reads every dynamic size that way. TensorRT up
to 11.4 wants the axes named (release notes of 11.5).

A TopK that need not sort may sort: TensorRT does (onnx-tensorrt operators.md of 10.15).

Not handled: a Squeeze of a value with sizes that are not known; it stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["name_squeezed_axes", "sort_the_largest"]


def name_squeezed_axes(graph: ir.Graph) -> None:
    """Give every Squeeze without axes those of size 1."""
    for node in graph.all_nodes():
        sizes = None if node.op_type != "Squeeze" or len(node.inputs) > 1 else _sizes(node.inputs[0])
        if sizes is None:
            continue
        axes = ir.tensor(np.array([index for index, size in enumerate(sizes) if size == 1], dtype=np.int64))
        constant = ir.Value(
            name=f"{node.outputs[0].name}.axes",
            const_value=axes,
            shape=ir.Shape([axes.size]),
            type=ir.TensorType(axes.dtype),
        )
        assert node.graph is not None
        node.graph.register_initializer(constant)
        node.resize_inputs(2)
        node.replace_input_with(1, constant)


def sort_the_largest(graph: ir.Graph) -> None:
    """Make every TopK sort what it finds."""
    for node in graph.all_nodes():
        if node.op_type == "TopK" and "sorted" in node.attributes:
            node.attributes["sorted"] = ir.AttrInt64("sorted", 1)


def _sizes(value: ir.Value | None) -> list[int] | None:
    """Return the sizes of `value`, None where one is not known."""
    if value is None:
        return None
    if value.shape is not None:
        known = [size for size in value.shape if isinstance(size, int)]
        return known if len(known) == len(value.shape) else None
    made = value.producer()
    if made is not None and made.op_type == "Shape" and {"start", "end"} <= set(made.attributes):
        first, last = made.attributes["start"].as_int(), made.attributes["end"].as_int()
        # Both count from one end, so that the difference is the length.
        return [last - first] if (first < 0) == (last < 0) and last > first else None
    return None
