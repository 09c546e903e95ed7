"""Propagate: which positions of which constants have to be removed together.

Units pass through all operators in order; see `units` and `layouts`. Rules stand in `views`, `layers`, `products`,
`einsum`, `fused` and `elementwise`. An operator that computes every element by itself (PyTorch tags it "pointwise")
needs none. What no rule knows is never guessed: it freezes what it reads.

Not handled: a view that joins channels with a dynamic dimension, as batch and heads in `nn.MultiheadAttention`, which
`fuse` undoes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.program import Program
from burnish.passes.canonical.weights import described
from burnish.passes.pruning import einsum, fused, layers, products, views
from burnish.passes.pruning.elementwise import elementwise
from burnish.passes.pruning.flow import Flow, Value, rule_of
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
    flow, unknown = Flow(cuts_features=features), Counter[str]()
    constants: dict[str, Layout] = {}
    mutable = program.mutable_constants()
    for _, graph in program.all_graphs():
        for node in graph.nodes:
            if node.op == "get_attr":
                name = str(node.target)
                if name not in constants:
                    constants[name] = _constant(program.constants.get(name), name in mutable, flow)
                flow.layouts[node] = constants[name]
            elif node.op == "call_function":
                flow.layouts[node] = _result(node, flow, unknown)
            elif node.op == "output":
                for each in node.all_input_nodes:
                    flow.freeze(each, "it is an output")
    found = {
        name: {dim: block.units for block in layout.blocks for dim in block.dims} for name, layout in constants.items()
    }
    return Dependencies(_separable(flow), found, flow.layouts, unknown, flow.heads, flow.features)


def _constant(value: torch.Tensor | None, is_mutable: bool, flow: Flow) -> Layout:
    # Weights, and the masks that they are multiplied by.
    if value is None or is_mutable or not (value.is_floating_point() or value.dtype == torch.bool):
        return Layout()
    return Layout(tuple(Block((dim,), flow.units.new(size)) for dim, size in enumerate(value.shape) if size > 1))


def _result(node: fx.Node, flow: Flow, unknown: Counter[str]) -> Value:
    if operator_name(node.target) == "getitem":
        whole = flow.layouts.get(node.all_input_nodes[0], Layout())
        return whole[node.args[1]] if isinstance(whole, list) else Layout()  # type: ignore[index]
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
    for value in flow.layouts.values():
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
