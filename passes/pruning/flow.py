"""Flow: what is known of the values of a Program while units pass through its operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import Operator, find_operator
from burnish.passes.canonical.types import shape_of
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Numbers, Units

__all__ = ["Flow", "Rule", "Value", "flow_rule", "rule_of", "sizes_of"]

Value = Layout | list[Layout]
"""The layout of a value, or of each result of an operator with several."""


@dataclass(slots=True)
class Flow:
    """Layouts of the values so far.

    Attributes:
        units: collects ties.
        layouts: by node.
        cuts_features: features that a norm takes statistics over may go: the statistics are then of the others.
        heads: units that are heads of attention, as they are met.
        features: units that a norm takes statistics over, as they are met.
        inner: layouts of values within operators.
    """

    units: Units = field(default_factory=Units)
    cuts_features: bool = False
    layouts: dict[fx.Node, Value] = field(default_factory=dict)
    heads: list[Numbers] = field(default_factory=list)
    features: list[Numbers] = field(default_factory=list)
    inner: list[Layout] = field(default_factory=list)

    def layout(self, value: Any) -> Layout:
        """Return the layout of a tensor; numbers and None have none."""
        found = self.layouts.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Layout) else Layout()

    def along(self, value: Any, dim: int) -> Numbers | None:
        """Return the units of a tensor along one dimension, which may count from the end."""
        return self.layout(value).along(dim % len(sizes_of(value)), self.units)

    def tie(self, left: Numbers | None, right: Numbers | None, reason: str) -> None:
        """Tie two dimensions of one size; where one holds no units, the other is frozen."""
        if left is not None and right is not None:
            self.units.tie(left, right)
        for one, other in ((left, right), (right, left)):
            if one is not None and other is None:
                self.units.freeze(one, reason)

    def freeze(self, value: Any, reason: str, dims: Sequence[int] | None = None) -> None:
        """Freeze some dimensions of a tensor, which may count from the end, or all."""
        rank = len(sizes_of(value)) if dims is not None else 0
        self.layout(value).freeze(self.units, reason, None if dims is None else [dim % rank for dim in dims])

    def kept(self, value: Any, reason: str, dims: Sequence[int]) -> Layout:
        """Freeze some dimensions of a tensor and return the layout of the others."""
        self.freeze(value, reason, dims)
        rank = len(sizes_of(value))
        return self.layout(value).without(dim % rank for dim in dims)

    def broadcast(self, operands: Sequence[tuple[Layout, Sequence[Any]]], reason: str) -> Layout:
        """Tie tensors that broadcast together, aligned at their last dimensions; return the layout of the result.

        Args:
            operands: layout and shape of each.
            reason: why units stay that meet a dimension without any.
        """
        rank = max((len(shape) for _, shape in operands), default=0)
        wide = [
            any(not _is_one(shape[dim - rank]) for _, shape in operands if rank - dim <= len(shape))
            for dim in range(rank)
        ]
        given: list[tuple[Layout, set[int]]] = []
        for layout, shape in operands:
            shift = rank - len(shape)
            present = {dim + shift for dim, size in enumerate(shape) if not _is_one(size) or not wide[dim + shift]}
            given.append((layout.moved({dim: dim + shift for dim in range(len(shape))}), present))
        blocks: list[Block] = []
        left = set[int]().union(*(layout.dims for layout, _ in given))
        while left:
            found = _connected(min(left), [layout for layout, _ in given])
            left -= found
            block = self._joined(sorted(found), given, reason)
            if block is not None:
                blocks.append(block)
        return Layout.of(blocks)

    def _joined(self, dims: list[int], given: list[tuple[Layout, set[int]]], reason: str) -> Block | None:
        """Tie the blocks over `dims` of several values."""
        there = [(layout, present & set(dims)) for layout, present in given if present & set(dims)]
        blocks = [layout.block(dims[0]) for layout, _ in there]
        alike = [block for block in blocks if block is not None and sorted(block.dims) == dims]
        if len(alike) == len(there):
            first, *others = (block.units.transpose([block.dims.index(dim) for dim in dims]) for block in alike)
            for each in others:
                self.units.tie(first, each)
            return Block(tuple(dims), first)
        # One dimension can keep its units: of those in which nobody stays as it is, the one that most values have.
        free = [dim for dim in dims if all(dim in layout.dims for layout, present in there if dim in present)]
        kept = max(free, key=lambda dim: sum(dim in present for _, present in there), default=None)
        known: Numbers | None = None
        for layout, present in there:
            if kept is None or kept not in present:
                layout.freeze(self.units, reason, dims)
                continue
            layout.without([kept]).freeze(self.units, reason, dims)
            along = layout.along(kept, self.units)
            assert along is not None
            if known is not None:
                self.units.tie(known, along)
            known = along
        return None if kept is None or known is None else Block((kept,), known)


Rule = Callable[[fx.Node, dict[str, Any], Flow], Value]
"""Gets a node, its arguments by name and the layouts before it; ties units and returns the layout of the result."""

_rules: dict[Operator, Rule] = {}


def flow_rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def wrap(function: Rule) -> Rule:
        for name in operators:
            _rules[find_operator(name)] = function
        return function

    return wrap


def rule_of(target: Any) -> Rule | None:
    """Return the rule of an operator."""
    return _rules.get(target)


def sizes_of(value: Any) -> tuple[int | torch.SymInt, ...]:
    """Return the shape of a tensor, or () for a number."""
    return shape_of(value) or ()


def _is_one(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) and size == 1


def _connected(dim: int, layouts: Sequence[Layout]) -> set[int]:
    """Return the dimensions that blocks connect with `dim`, itself among them."""
    found, waiting = {dim}, [dim]
    while waiting:
        each = waiting.pop()
        for layout in layouts:
            block = layout.block(each)
            new = set(block.dims) - found if block is not None else set()
            found |= new
            waiting += new
    return found
