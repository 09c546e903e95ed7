"""Rules on casts: one form, `aten.to.dtype(x, dtype)`, and none that changes nothing.

Not handled: a move to another device or layout stays as it is.
"""

from __future__ import annotations

import torch
from torch import fx

from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.aliases import drop
from burnish.passes.canonical.types import same_shape, same_type, tensor_of

__all__ = ["RULES"]

_CASTS = (
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten.to.other",
    "aten._to_copy",
    "aten.type_as",
    "prims.convert_element_type",
)


@rule(*_CASTS)
def drop_cast(node: fx.Node, rewriter: Rewriter) -> None:
    """A cast to the type that x has is x."""
    source = node.args[0]
    if isinstance(source, fx.Node) and same_type(node, source):
        drop(node, source, rewriter)


@rule(*_CASTS)
def cast_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Every cast is aten.to.dtype(x, dtype), without memory format and copying flags."""
    source, result = node.args[0], tensor_of(node)
    origin = tensor_of(source)
    if result is None or origin is None or same_type(node, source):
        return
    if node.target is torch.ops.aten.to.dtype and len(node.args) == 2 and not node.kwargs:
        return
    if origin.device != result.device or origin.layout != result.layout:
        rewriter.skip(node, "it moves to another device or layout")
        return
    rewriter.replace(node, "aten.to.dtype", (source, result.dtype), {}, same_type=True)


@rule("aten.to.dtype")
def drop_round_trip(node: fx.Node, rewriter: Rewriter) -> None:
    """A cast to a wider type and back is nothing."""
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not torch.ops.aten.to.dtype:
        return
    source = inner.args[0]
    origin, middle = tensor_of(source), tensor_of(inner)
    if not isinstance(source, fx.Node) or origin is None or middle is None or not same_type(node, source):
        return
    if not same_shape(origin.shape, middle.shape) or not _widens(origin.dtype, middle.dtype):
        rewriter.skip(node, f"the cast to {middle.dtype} before it loses bits".replace("torch.", ""))
        return
    drop(node, source, rewriter)


def _widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    # An integer in a float, and a float in an integer, may lose bits although the types promote.
    same_kind = narrow.is_floating_point == wide.is_floating_point and not narrow.is_complex and not wide.is_complex
    return same_kind and wide is not torch.bool and torch.promote_types(narrow, wide) == wide


RULES = (drop_cast, cast_form, drop_round_trip)
