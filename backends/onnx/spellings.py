"""Spellings that keep ONNX Runtime's own optimizer from making a graph wrong or slow.

A Pad of zeros before a MaxPool: Pad_Fusion (seen in 1.31) moves it into the pool, which pads with minus infinity. It
leaves a Pad alone that names its axes, which means the same.

An Add that only a LayerNormalization reads: SkipLayerNormFusion joins the two into a kernel that takes more than twice
as long as both on the CPU (1.31, `python -m benchmarks.kernels`). It leaves a Sum alone.

A quantized Mul with a factor for each channel, as squeeze-and-excitation ends: QLinearMul, channels last, goes through
a broadcast in runs of one pixel and on one thread. Large ones take six tenths of the time with the factor tiled to the
whole tensor, in uint8, including the Tile (1.31, `python -m benchmarks.kernels --filter factor`).

The spellings are in the file, so that they also hold where others load it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from burnish.backends.onnx.conv_pads import remove_unused

__all__ = ["keep_pads_before_pools", "keep_sums_before_norms", "tile_quantized_factors"]


def keep_pads_before_pools(graph: ir.Graph) -> None:
    """Name the axes of every Pad whose result a MaxPool reads."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Pad" or len(node.inputs) > 3:
            continue
        pads, value = node.inputs[1], node.outputs[0]
        if pads is None or pads.const_value is None or all(user.op_type != "MaxPool" for user, _ in value.uses()):
            continue
        rank = pads.const_value.size // 2
        axes = ir.tensor(np.arange(rank, dtype=np.int64))
        kind = ir.TensorType(axes.dtype)
        constant = ir.Value(name=f"{value.name}.axes", const_value=axes, shape=ir.Shape([rank]), type=kind)
        assert node.graph is not None
        node.graph.register_initializer(constant)
        node.resize_inputs(4)
        node.replace_input_with(3, constant)


def keep_sums_before_norms(graph: ir.Graph) -> None:
    """Make every Add that only a LayerNormalization reads a Sum."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Add" or node.outputs[0].is_graph_output():
            continue
        readers = [(user.op_type, index) for user, index in node.outputs[0].uses()]
        if readers == [("LayerNormalization", 0)]:
            node.op_type = "Sum"


def tile_quantized_factors(graph: ir.Graph) -> None:
    """Tile, while it is uint8, the factor of every quantized Mul that has one number for each sample and channel."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Mul" or [user.op_type for user, _ in node.outputs[0].uses()] != ["QuantizeLinear"]:
            continue
        for index in (0, 1):
            factor, other = node.inputs[index], node.inputs[1 - index]
            source, repeats = _dequantized(factor), _repeats(factor, other)
            if source is not None and repeats is not None and _dequantized(other) is not None:
                node.replace_input_with(index, _tiled(node, source, repeats))
                remove_unused(source.outputs[0])


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear with one scale that makes `value`."""
    made = None if value is None else value.producer()
    return made if made is not None and made.op_type == "DequantizeLinear" and "axis" not in made.attributes else None


def _repeats(factor: ir.Value | None, other: ir.Value | None) -> list[int] | None:
    """Return how often `factor` [B, C, 1, ...] is repeated along each dimension of `other` [B, C, H, ...]."""
    if factor is None or other is None or factor.shape is None or other.shape is None:
        return None
    small, large = factor.shape.dims, other.shape.dims
    sizes = [each for each in large[2:] if isinstance(each, int)]
    per_channel = len(small) == len(large) > 2 and small[:2] == large[:2] and all(each == 1 for each in small[2:])
    return [1, 1, *sizes] if per_channel and len(sizes) == len(large) - 2 and max(sizes) > 1 else None


def _tiled(node: ir.Node, source: ir.Node, repeats: list[int]) -> ir.Value:
    """Insert before `node` what `source` dequantizes, tiled and then dequantized."""
    name = source.outputs[0].name
    counts = ir.tensor(np.array(repeats, dtype=np.int64), name=f"{name}.repeats")
    held = ir.Value(
        name=counts.name, const_value=counts, shape=ir.Shape([len(repeats)]), type=ir.TensorType(counts.dtype)
    )
    assert node.graph is not None
    node.graph.register_initializer(held)
    tile = ir.Node("", "Tile", [source.inputs[0], held], name=f"{name}.tile")
    again = ir.Node("", "DequantizeLinear", [tile.outputs[0], *source.inputs[1:]], name=f"{name}.tiled")
    for made, origin in ((tile, source.inputs[0]), (again, source.outputs[0])):
        assert origin is not None
        made.outputs[0].name, made.outputs[0].type = f"{made.name}.out", origin.type
        made.metadata_props.update(source.metadata_props)
    node.graph.insert_before(node, (tile, again))
    return again.outputs[0]
