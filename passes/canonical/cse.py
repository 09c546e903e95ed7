"""cse: compute equal things once.

Two operator nodes are merged when they call the same operator on the same arguments, defaults filled in; the first one
stays, under its own name and with the origins of both. Two references to one constant are merged too.

Not handled: random operators and buffer updates are never merged; operators whose result's size depends on the data
(`nonzero`) are not, since each has a size symbol of its own; operators that call branches (`cond`) are not; `a + b`
and `b + a` count as different, and so do equal constants under two names.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from burnish.compiler.context import Context
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.operators import is_mutating, is_random, schema_of
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter

__all__ = ["CommonSubexpressions"]

_DATA_DEPENDENT = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


@dataclass(frozen=True, kw_only=True)
class CommonSubexpressions(Pass):
    """Merge operators that compute the same from the same arguments."""

    name: ClassVar[str] = "cse"
    numerics: ClassVar[Numerics] = Exact()
    idempotent: ClassVar[bool] = True

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the class."""
        for _, graph in program.all_graphs():
            merged: dict[fx.Node, list[fx.Node]] = {}
            try:
                _merge(graph, rewriter, merged)
            finally:
                # At the end, and at once: a union after each merge would be quadratic in the number of equal nodes.
                for first, others in merged.items():
                    rewriter.inherit(first, others)


def _merge(graph: fx.Graph, rewriter: Rewriter, merged: dict[fx.Node, list[fx.Node]]) -> None:
    # Arguments stand before their users and are merged by then, so one sweep finds everything.
    seen: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            key: Hashable = ("constant", node.target)
        elif node.op == "call_function" and not isinstance(node.target, HigherOrderOperator):
            if is_mutating(node.target) or is_random(node):
                continue
            key = (node.target, _bound(node))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if isinstance(node.target, OpOverload) and not _DATA_DEPENDENT.isdisjoint(node.target.tags):
            rewriter.skip(node, f"equal to %{first.meta['name']}, but the size of its result depends on the data")
            continue
        rewriter.replace(node, first)
        merged.setdefault(first, []).append(node)


def _bound(node: fx.Node) -> Hashable:
    """Return the arguments of `node` as something that is equal for equal calls, however these are written."""
    schema: Any = schema_of(node.target)
    if schema is None:
        return (_key(node.args), _key(node.kwargs))
    args, kwargs, defaults = node.args, node.kwargs, schema.defaults
    given = [_key(value) for value in args]
    for name in schema.names[len(args) :]:
        given.append(_key(kwargs[name] if name in kwargs else defaults.get(name)))
    return tuple(given)


def _key(value: Any) -> Hashable:
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, (list, tuple)):
        return tuple([_key(each) for each in value])
    if isinstance(value, dict):
        return tuple([(name, _key(each)) for name, each in value.items()])
    if isinstance(value, slice):
        return (slice, _key(value.start), _key(value.stop), _key(value.step))
    # 1, 1.0 and True differ, and so do 0.0 and -0.0; NaN equals NaN.
    return (type(value), repr(value) if isinstance(value, (float, complex)) else value)
