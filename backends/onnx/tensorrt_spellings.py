"""Spellings without which TensorRT's parser refuses a graph. The meaning is the same, in every runtime.

A Squeeze without axes removes the dimensions of size 1: torch's exporter reads every dynamic size that way. TensorRT up
to 11.4 wants the axes named (release notes of 11.5).

A TopK that need not sort may sort: TensorRT does (onnx-tensorrt operators.md of 10.15).

A Clip of integers becomes a Max and a Min, and a Col2Im of blocks side by side a rearrangement: TensorRT has Clip for
floats alone, and no Col2Im (the same page).

Not handled: a Squeeze of a value with sizes that are not known, a Col2Im whose blocks overlap; they stay as they are.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

__all__ = ["clip_integers_by_bounds", "name_squeezed_axes", "rearrange_blocks", "sort_the_largest"]

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def name_squeezed_axes(graph: ir.Graph) -> None:
    """Give every Squeeze without axes those of size 1."""
    for node in graph.all_nodes():
        sizes = None if node.op_type != "Squeeze" or len(node.inputs) > 1 else _sizes(node.inputs[0])
        if sizes is None:
            continue
        node.resize_inputs(2)
        node.replace_input_with(1, _constant(node, "axes", [index for index, size in enumerate(sizes) if size == 1]))


def sort_the_largest(graph: ir.Graph) -> None:
    """Make every TopK sort what it finds."""
    for node in graph.all_nodes():
        if node.op_type == "TopK" and "sorted" in node.attributes:
            node.attributes["sorted"] = ir.AttrInt64("sorted", 1)


def clip_integers_by_bounds(graph: ir.Graph) -> None:
    """Replace every Clip of integers by a Max with its least value and a Min with its greatest."""
    for node in list(graph.all_nodes()):
        value = node.inputs[0] if node.op_type == "Clip" else None
        if value is None or value.dtype not in _INTEGERS:
            continue
        bounds = zip(("Max", "Min"), [*node.inputs[1:], None, None], strict=False)
        made = [ir.Node("", operator, [value, bound]) for operator, bound in bounds if bound is not None]
        made = made or [ir.Node("", "Identity", [value])]
        for first, second in itertools.pairwise(made):
            second.replace_input_with(0, first.outputs[0])
        _replace(node, made)


def rearrange_blocks(graph: ir.Graph) -> None:
    """Replace every Col2Im whose blocks lie side by side and cover the image by Reshape, Transpose and Reshape."""
    for node in list(graph.all_nodes()):
        sizes = _block_sizes(node) if node.op_type == "Col2Im" else None
        if sizes is None:
            continue
        channels, image, block = sizes
        rank = len(image)
        counts = [size // each for size, each in zip(image, block, strict=True)]
        # 0 is the size that was there, the batch.
        parts = ir.Node("", "Reshape", [node.inputs[0], _constant(node, "parts", [0, channels, *block, *counts])])
        places = [0, 1, *(place for index in range(rank) for place in (2 + rank + index, 2 + index))]
        moved = ir.Node("", "Transpose", [parts.outputs[0]], [ir.AttrInt64s("perm", places)])
        whole = ir.Node("", "Reshape", [moved.outputs[0], _constant(node, "whole", [0, channels, *image])])
        _replace(node, [parts, moved, whole])


def _block_sizes(node: ir.Node) -> tuple[int, list[int], list[int]] | None:
    """Return channels, image and block of a Col2Im; None where they are not known, or blocks overlap or leave gaps."""
    image, block = (
        each.const_value.numpy().tolist() if each and each.const_value else None for each in node.inputs[1:]
    )
    shape = node.outputs[0].shape
    channels = shape[1] if shape is not None else None
    if image is None or block is None or not isinstance(channels, int):
        return None
    side_by_side = list(node.attributes.get_ints("strides", [1] * len(image))) == block
    dense = all(each == 1 for each in node.attributes.get_ints("dilations", []))
    unpadded = not any(node.attributes.get_ints("pads", []))
    covering = all(size % each == 0 for size, each in zip(image, block, strict=True))
    return (channels, image, block) if side_by_side and dense and unpadded and covering else None


def _constant(node: ir.Node, suffix: str, numbers: list[int]) -> ir.Value:
    """Return a new constant beside `node`."""
    held = ir.tensor(np.array(numbers, dtype=np.int64))
    name = f"{node.outputs[0].name}.{suffix}"
    constant = ir.Value(name=name, const_value=held, shape=ir.Shape([held.size]), type=ir.TensorType(held.dtype))
    assert node.graph is not None
    node.graph.register_initializer(constant)
    return constant


def _replace(node: ir.Node, made: list[ir.Node]) -> None:
    """Put nodes in the place of `node`, the last of which gives its result."""
    result, last = node.outputs[0], made[-1].outputs[0]
    for each in made:
        each.metadata_props.update(node.metadata_props)
    for each in made[:-1]:
        each.outputs[0].type = result.type
    last.shape, last.type = result.shape, result.type
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [result], [last])


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
