"""Spellings that keep ONNX Runtime's own optimizer from making a graph wrong or slow.

A Pad of zeros before a MaxPool: Pad_Fusion (seen in 1.31) moves it into the pool, which pads with minus infinity. It
leaves a Pad alone that names its axes, which means the same.

An Add that only a LayerNormalization reads: SkipLayerNormFusion joins the two into a kernel that takes more than twice
as long as both on the CPU (1.31, `python -m benchmarks.kernels`). It leaves a Sum alone.

The spellings are in the file, so that they also hold where others load it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["keep_pads_before_pools", "keep_sums_before_norms"]


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
