"""cse: compute equal things once.

Two operator nodes are merged when they call the same operator on the same arguments, defaults filled in; the first one
stays, under its own name and with the origins of both. Two references to one constant are merged too. Constants with
equal contents (dtype, shape, strides and every bit) count as one argument, so that identical branches merge; where that
merges no operator, both stay.

Not handled: random operators and buffer updates are never merged; operators whose result's size depends on the data
(`nonzero`) are not, since each has a size symbol of its own; operators that call branches (`cond`) are not; `a + b`
and `b + a` count as different; equal constants in different graphs of a Program are two, and buffers that a run updates
equal nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from burnish.compiler.context import Context
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.operators import is_mutating, is_random, schema_of
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter

__all__ = ["CommonSubexpressions"]

_DATA_DEPENDENT = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
# Integers of a dtype's size, to compare bits: NaN equals itself then, and 0.0 is not -0.0.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements of a constant that are looked at before all are compared.
_SAMPLES = 8
# With how many constants that have the same samples one is compared, which keeps the pass linear.
_MOST = 4


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
    equal = _equal_constants(graph, rewriter)
    spare: list[fx.Node] = []
    for node in list(graph.nodes):
        if node.op == "get_attr":
            key: Hashable = ("constant", node.target)
        elif node.op == "call_function" and not isinstance(node.target, HigherOrderOperator):
            if is_mutating(node.target) or is_random(node):
                continue
            key = (node.target, _bound(node, equal))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if _has_a_size_of_its_own(node):
            rewriter.skip(node, f"equal to %{first.meta['name']}, but the size of its result depends on the data")
            continue
        spare += [each for each in node.all_input_nodes if each in equal]
        rewriter.replace(node, first)
        merged.setdefault(first, []).append(node)
    for constant in dict.fromkeys(spare):
        if not constant.users:
            merged.setdefault(equal[constant], []).append(constant)
            rewriter.erase(constant)


def _equal_constants(graph: fx.Graph, rewriter: Rewriter) -> dict[fx.Node, fx.Node]:
    """Return, for constants that equal an earlier one bit by bit, that one."""
    groups: dict[Hashable, list[tuple[fx.Node, torch.Tensor]]] = {}
    for node in graph.find_nodes(op="get_attr"):
        value = rewriter.constant(node)
        if value is not None and _has_bits(value):
            bits = value.detach().view(_BITS[value.element_size()])
            key = (value.dtype, value.device, value.shape, value.stride())
            groups.setdefault(key, []).append((node, bits))
    found: dict[fx.Node, fx.Node] = {}
    for group in groups.values():
        if len(group) == 1:
            continue
        alike: dict[Hashable, list[tuple[fx.Node, torch.Tensor]]] = {}
        for node, bits in group:
            known = alike.setdefault(_samples(bits), [])
            first = next((other for other, its in known if torch.equal(its, bits)), None)
            if first is not None:
                found[node] = first
            elif len(known) < _MOST:
                known.append((node, bits))
    return found


def _has_bits(value: torch.Tensor) -> bool:
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_complex()
    return plain and value.device.type != "meta"


def _samples(bits: torch.Tensor) -> Hashable:
    count = bits.numel()
    if count <= _SAMPLES:
        return tuple(bits.flatten().tolist())
    places = torch.arange(_SAMPLES, device=bits.device) * (count - 1) // (_SAMPLES - 1)
    return tuple(torch.take(bits, places).tolist())


def _has_a_size_of_its_own(node: fx.Node) -> bool:
    """Tell whether the result has a size, or is a number, that only the values say (`nonzero`, not `x[[0, 2]]`)."""
    if not isinstance(node.target, OpOverload) or _DATA_DEPENDENT.isdisjoint(node.target.tags):
        return False
    return bool(free_unbacked_symbols(node.meta["val"]))


def _bound(node: fx.Node, equal: dict[fx.Node, fx.Node]) -> Hashable:
    """Return the arguments of `node` as something that is equal for equal calls, however these are written."""
    schema: Any = schema_of(node.target)
    if schema is None:
        return (_key(node.args, equal), _key(node.kwargs, equal))
    args, kwargs, defaults = node.args, node.kwargs, schema.defaults
    given = [_key(value, equal) for value in args]
    for name in schema.names[len(args) :]:
        given.append(_key(kwargs[name] if name in kwargs else defaults.get(name), equal))
    return tuple(given)


def _key(value: Any, equal: dict[fx.Node, fx.Node]) -> Hashable:
    if isinstance(value, fx.Node):
        return equal.get(value, value)
    if isinstance(value, (list, tuple)):
        return tuple([_key(each, equal) for each in value])
    if isinstance(value, dict):
        return tuple([(name, _key(each, equal)) for name, each in value.items()])
    if isinstance(value, slice):
        return (slice, _key(value.start, equal), _key(value.stop, equal), _key(value.step, equal))
    # 1, 1.0 and True differ, and so do 0.0 and -0.0; NaN equals NaN.
    return (type(value), repr(value) if isinstance(value, (float, complex)) else value)
