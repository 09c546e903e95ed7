"""Propagate: which positions of which constants have to be removed together.

Units pass through all operators in order; see `units` and `layouts`. Rules stand in `views`, `layers`, `products`,
`einsum`, `fused` and `elementwise`. An operator that computes every element by itself (PyTorch tags it "pointwise")
needs none. What no rule knows is never guessed: it freezes what it reads.

Not handled: a view that joins channels with a dynamic dimension, as batch and heads in `nn.MultiheadAttention`, which
`fuse` undoes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from burnish.compiler.conditional import Conditional, conditional
from burnish.compiler.graphs import output_of
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.program import Program
from burnish.passes.canonical.weights import described
from burnish.passes.pruning import einsum, fused, layers, products, views
from burnish.passes.pruning.elementwise import elementwise
from burnish.passes.pruning.flow import Flow, Value, rule_of, sizes_of
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Classes, Flags, Numbers

__all__ = ["Dependencies", "propagate"]

_RULES = (einsum, fused, layers, products, views)


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What hangs together.

    Attributes:
        classes: of units.
        constants: by name, for every dimension that holds units, these.
        layouts: of all values.
        unknown: how often an operator without a rule stopped units, by its name.
        heads: units that are heads of attention.
        features: units that a norm takes statistics over, where these may go.
    """

    classes: Classes
    constants: dict[str, dict[int, Numbers]]
    layouts: dict[fx.Node, Value]
    unknown: Counter[str]
    heads: list[Numbers]
    features: list[Numbers]


def propagate(program: Program, *, features: bool = False) -> Dependencies:
    """Return which positions of constants depend on each other.

    Args:
        program: may be fused.
        features: features that a norm takes statistics over may go: the statistics are then of the others.
    """
    walk = _Walk(program, Flow(cuts_features=features))
    for graph in program.graphs.values():
        walk.graph(graph)
        for each in output_of(graph).all_input_nodes:
            walk.flow.freeze(each, "it is an output")
    found = {
        name: {dim: block.units for block in layout.blocks for dim in block.dims}
        for name, layout in walk.constants.items()
    }
    flow = walk.flow
    return Dependencies(_separable(flow), found, flow.layouts, walk.unknown, flow.heads, flow.features)


class _Walk:
    """Takes units through graphs, and from a `cond` into its branches and back."""

    def __init__(self, program: Program, flow: Flow) -> None:
        self.program, self.flow = program, flow
        self.constants: dict[str, Layout] = {}
        self.unknown = Counter[str]()
        self.mutable = program.mutable_constants()

    def graph(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.op == "get_attr":
                name = str(node.target)
                if name not in self.constants:
                    value = self.program.constants.get(name)
                    self.constants[name] = _constant(value, name in self.mutable, self.flow)
                self.flow.layouts[node] = self.constants[name]
            elif node.op == "call_function":
                choice = conditional(node)
                self.flow.layouts[node] = (
                    _result(node, self.flow, self.unknown) if choice is None else self._chosen(choice)
                )

    def _chosen(self, choice: Conditional) -> Value:
        """Return what both branches give: whichever runs, the same units go."""
        flow = self.flow
        for inside, operand in choice.inputs(self.program):
            if inside in flow.layouts:
                self._together([inside, operand])
            else:
                flow.layouts[inside] = flow.layout(operand)
        outputs = []
        for name in choice.branches:
            graph = self.program.branches[name]
            # Another `cond` may have been here.
            if output_of(graph) not in flow.layouts:
                self.graph(graph)
                flow.layouts[output_of(graph)] = Layout()
            outputs.append(output_of(graph).args[0])
        return [self._together(list(both)) for both in zip(*outputs, strict=True)]

    def _together(self, values: Sequence[Any]) -> Layout:
        operands = [(self.flow.layout(each), sizes_of(each)) for each in values]
        return self.flow.broadcast(operands, "the other branch keeps it")


def _constant(value: torch.Tensor | None, is_mutable: bool, flow: Flow) -> Layout:
    # Weights, and the masks that they are multiplied by.
    if value is None or is_mutable or not (value.is_floating_point() or value.dtype == torch.bool):
        return Layout()
    return Layout(tuple(Block((dim,), flow.units.new(size)) for dim, size in enumerate(value.shape) if size > 1))


def _result(node: fx.Node, flow: Flow, unknown: Counter[str]) -> Value:
    if operator_name(node.target) == "getitem":
        whole = flow.layouts.get(node.all_input_nodes[0], Layout())
        if isinstance(whole, list):
            found: Layout = whole[node.args[1]]  # type: ignore[index]
            return found
        whole.freeze(flow.units, f"no rule knows the results of {described(node.all_input_nodes[0])}")
        return Layout()
    if not any(_holds(flow.layouts.get(each)) for each in node.all_input_nodes):
        return Layout()
    rule = rule_of(node.target)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = elementwise
    if rule is not None:
        return rule(node, arguments(node), flow)
    if isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
        unknown[operator_name(node.target)] += 1
        for each in node.all_input_nodes:
            whole = flow.layouts.get(each, Layout())
            for layout in whole if isinstance(whole, list) else [whole]:
                layout.freeze(flow.units, f"no rule knows {described(node)}")
    return Layout()


def _holds(value: Value | None) -> bool:
    layouts = value if isinstance(value, list) else [value] if value is not None else []
    return any(layout.blocks for layout in layouts)


def _separable(flow: Flow) -> Classes:
    """Return the classes after ties that let every block of several dimensions keep its form.

    Where nothing in the Program has said along which dimension such a block is cut, as between the two views of a
    channel shuffle, it is the one with most slices that can go.
    """
    while True:
        classes, added = flow.units.classes(), False
        stays = classes.are_frozen
        for block in _joint_blocks(flow):
            found = classes.of[block.units]
            axis = _cut(found, stays[found])
            if axis is not None:
                for other in range(block.units.ndim):
                    if other != axis:
                        flow.units.tie_along(block.units, other)
                added = True
        if not added:
            return classes


def _joint_blocks(flow: Flow) -> Iterator[Block]:
    seen = set[int]()
    for value in (*flow.layouts.values(), flow.inner):
        for layout in value if isinstance(value, list) else [value]:
            for block in layout.blocks:
                if len(block.dims) > 1 and id(block.units) not in seen:
                    seen.add(id(block.units))
                    yield block


def _cut(classes: Numbers, stays: Flags) -> int | None:
    """Return the axis along which slices should be tied; None where classes are slices along one already."""
    free: list[int] = []
    if stays.all():
        return None
    for axis in range(classes.ndim):
        rows = np.moveaxis(classes, axis, 0).reshape(classes.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return None
        free.append(int((~np.moveaxis(stays, axis, 0).reshape(classes.shape[axis], -1).any(1)).sum()))
    return int(np.argmax(free))
