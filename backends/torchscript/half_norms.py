"""Layer norms between casts, `to(layer_norm(to(x, f32)), f16)`, as one operator on half precision.

PyTorch's kernel reads half precision beside float32 weights and computes in float32 itself: the casts are spared, and
with them two tensors of float32 that large activations write to memory and read again. The result is rounded once, as
with the casts.

Not handled: group norms, whose kernel is slower so where memory is channels-last (`benchmarks.torch_kernels`), softmax,
and norms that are read in float32 as well.
"""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.graphs import calls
from burnish.compiler.operators import argument
from burnish.compiler.program import Program

__all__ = ["spare_casts_of_norms"]

_HALF = (torch.bfloat16, torch.float16)
_CAST = torch.ops.aten.to.dtype
_NORM = torch.ops.aten.layer_norm.default


def spare_casts_of_norms(program: Program) -> Program:
    """Return a copy of `program` with such norms; `program` itself where there are none."""
    if not any(_source(node) is not None for _, graph in program.all_graphs() for node in calls(graph)):
        return program
    program = program.copy()
    for _, graph in program.all_graphs():
        for node in list(calls(graph)):
            source = _source(node)
            if source is not None:
                _spare(node, source)
    return program


def _source(node: fx.Node) -> fx.Node | None:
    """Return what a norm reads in half precision, where all readers of the norm cast it back to that; else None."""
    cast = argument(node, "input") if node.target == _NORM else None
    if not isinstance(cast, fx.Node) or cast.target != _CAST or not node.users:
        return None
    source = argument(cast, "self")
    if not isinstance(source, fx.Node) or cast.meta["val"].dtype != torch.float32:
        return None
    half = source.meta["val"].dtype
    cast_back = all(user.target == _CAST and user.meta["val"].dtype == half for user in node.users)
    return source if half in _HALF and cast_back else None


def _spare(norm: fx.Node, source: fx.Node) -> None:
    casts = [norm.all_input_nodes[0], *norm.users]
    norm.meta["val"] = casts[-1].meta["val"]
    norm.replace_input_with(casts[0], source)
    for each in casts[1:]:
        each.replace_all_uses_with(norm)
    for each in casts:
        if not each.users:
            norm.graph.erase_node(each)
