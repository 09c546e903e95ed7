"""In-place operators that plainly mean their functional twins: `relu_` on what a convolution has just made.

Tracing a graph again to make it functional costs more than the rest of a capture. It is not needed where every in-place
operator is element-wise, writes to a value with memory of its own, and no view of that memory exists.

Cases not handled (they are traced again, see `functional.py`): views, inputs and buffers written to, operands of
several dtypes, branches.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from burnish.compiler.graphs import calls
from burnish.compiler.operators import is_mutating

__all__ = ["functional_twins"]

_aten = torch.ops.aten
# Composite operators whose schema does not say so, but which always return memory of their own.
_FRESH = frozenset(
    getattr(_aten, name)
    for name in (
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm",
        "linear", "layer_norm", "group_norm", "instance_norm", "matmul", "max_pool1d", "max_pool2d", "max_pool3d",
        "relu6", "upsample_nearest2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    )
)  # fmt: skip


def functional_twins(exported: ExportedProgram) -> dict[fx.Node, OpOverload] | None:
    """Return the functional operator for every in-place node of `exported`, or None where it is not as simple."""
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in exported.graph_signature.output_specs):
        return None
    twins: dict[fx.Node, OpOverload] = {}
    for node in calls(exported.graph):
        if is_mutating(node.target):
            twin = _twin(node)
            if twin is None:
                return None
            twins[node] = twin
    return twins


def _twin(node: fx.Node) -> OpOverload | None:
    target, written = node.target, node.args[0] if node.args else None
    if not isinstance(target, OpOverload) or not isinstance(written, fx.Node):
        return None
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None) if name.endswith("_") else None
    twin = getattr(packet, target._overloadname, None)
    if not isinstance(twin, OpOverload) or torch.Tag.pointwise not in twin.tags:
        return None
    dtypes = {each.meta["val"].dtype for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor)}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        return None
    return twin if _has_own_memory(written) and _is_not_viewed(written) and _is_not_viewed(node) else None


def _has_own_memory(node: fx.Node) -> bool:
    if is_mutating(node.target) and node.args and isinstance(node.args[0], fx.Node):
        return _has_own_memory(node.args[0])
    return _makes_memory(node)


def _is_not_viewed(node: fx.Node) -> bool:
    return all(user.op == "output" or _makes_memory(user) or is_mutating(user.target) for user in node.users)


def _makes_memory(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload) or is_mutating(target):
        return False
    if target.overloadpacket in _FRESH:
        return True
    composite = OpOverload.has_kernel_for_dispatch_key(target, torch._C.DispatchKey.CompositeImplicitAutograd)
    return not composite and all(result.alias_info is None for result in target._schema.returns)
