"""Dropping an operator whose result is its input's value, where the result must not become the input itself.

A buffer that the run updates is written at the end of the run, in place in some backends. A copy of it, or of a view of
it, is what keeps the old value apart: it stays.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch._ops import OpOverload

from burnish.compiler.rewriter import Rewriter

__all__ = ["drop"]


def drop(node: fx.Node, source: Any, rewriter: Rewriter) -> None:
    """Replace `node` by the node `source`, unless that would expose a buffer that the run updates."""
    assert isinstance(source, fx.Node)
    if _is_updated(source, rewriter):
        rewriter.skip(node, "it copies a buffer that the run updates")
        return
    rewriter.replace(node, source)


def _is_updated(value: fx.Node, rewriter: Rewriter) -> bool:
    while value.op == "call_function" and isinstance(value.target, OpOverload):
        returns = value.target._schema.returns
        if not returns or returns[0].alias_info is None or not value.all_input_nodes:
            return False
        value = value.all_input_nodes[0]
    return value.op == "get_attr" and rewriter.is_updated(value)
