"""Which values half precision cannot hold: as measured on data, and as the numbers in the graph say.

1. A value whose largest magnitude over the data is beyond a limit, or below the type's smallest normal number.
2. A constant of which that holds.
3. What is computed with a number beyond the type's finite range, -1e9 in a mask: samples whose masks hide nothing do
   not show it. It goes on through rearrangements and arithmetic, up to what bounds it or is an island anyway.

Infinities do not count: half precision has them too. Not handled: values within the branches of a `cond` are not
measured, only what these read and give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler import interpreter
from burnish.compiler.conditional import conditional
from burnish.compiler.graphs import calls, name_of, output_of, placeholders
from burnish.compiler.program import Program
from burnish.passes.precision.kinds import bounds, kind_of, literals

__all__ = ["Key", "Limits", "Reach", "measured", "troubles"]

Key = tuple[str, str]
"""Names of a graph and of a node in it, which copies of a Program share."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a type can hold.

    Attributes:
        largest: the largest magnitude that is let through where values were measured.
        finite: the type's largest number.
        normal: its smallest normal number: below, digits are lost.
    """

    largest: float
    finite: float
    normal: float

    @staticmethod
    def of(dtype: torch.dtype, largest: float) -> Limits:
        """Return the limits of a floating-point type."""
        info = torch.finfo(dtype)
        return Limits(largest, info.max, info.smallest_normal)

    def trouble(self, reach: float) -> str | None:
        """Say what is wrong with a value of this largest magnitude."""
        if reach > self.largest:
            return f"reaches {reach:.3g}, more than {self.largest:.3g}"
        return f"is {reach:.3g} at the most, where digits are lost" if 0 < reach < self.normal else None


@dataclass(slots=True)
class Reach:
    """The largest finite magnitude of every value over some data."""

    values: dict[Key, float]

    def add(self, key: Key, value: Any) -> None:
        """Take in one more tensor of floats; anything else is left out."""
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            found = _magnitude(value)
            self.values[key] = max(found, self.values.get(key, 0.0))


def measured(program: Program, data: Iterable[Mapping[str, Any]]) -> Reach:
    """Run `program` on inputs by name and return how far its values reach."""
    labels = {graph: label for label, graph in program.all_graphs()}
    stages = list(program.graphs.items())
    makers = {name: (label, name_of(made)) for label, graph in stages for name, made in _outputs(graph).items()}
    reach = Reach({})
    for inputs in data:
        interpreter.run(program, inputs, lambda node, value: reach.add((labels[node.graph], name_of(node)), value))
        for label, graph in stages:
            for node in placeholders(graph):
                reach.add((label, name_of(node)), inputs.get(str(node.target)))
    for label, graph in stages:
        for node in placeholders(graph):
            if str(node.target) in makers and makers[str(node.target)] in reach.values:
                reach.values[label, name_of(node)] = reach.values[makers[str(node.target)]]
    return reach


def troubles(program: Program, reach: Reach, limits: Limits) -> dict[fx.Node, str]:
    """Return what half precision cannot hold, and why: "reaches 1e+09, more than 8188" for one."""
    found: dict[fx.Node, str] = {}
    for label, graph in program.all_graphs():
        for node in graph.nodes:
            magnitude = reach.values.get((label, name_of(node)))
            if node.op == "get_attr" and node.target in program.constants:
                value = program.constants[str(node.target)]
                magnitude = _magnitude(value) if value.is_floating_point() and value.numel() else None
            trouble = limits.trouble(magnitude) if magnitude is not None else None
            if trouble is not None:
                found[node] = trouble
    large: set[fx.Node] = set()
    for graph in program.graphs.values():
        _spread(program, graph, limits, found, large)
    return found


def _spread(program: Program, graph: fx.Graph, limits: Limits, found: dict[fx.Node, str], large: set[fx.Node]) -> None:
    """Add what is computed with numbers beyond the finite range."""
    for node in graph.find_nodes(op="get_attr"):
        if node in found and _magnitude(program.constants[str(node.target)]) > limits.finite:
            large.add(node)
    for node in calls(graph):
        choice = conditional(node)
        if choice is not None:
            large.update(inside for inside, operand in choice.inputs(program) if operand in large)
            for name in choice.branches:
                _spread(program, program.branches[name], limits, found, large)
            continue
        beyond = [abs(each) for each, compared in literals(node) if limits.finite < abs(each) < float("inf")]
        kind = kind_of(node)
        passes = kind in ("free", "shape") and not bounds(node)
        if (beyond and kind != "low") or (passes and any(each in large for each in node.all_input_nodes)):
            large.add(node)
            say = f"may reach {max(beyond):.3g}" if beyond else "may be as large as what it is computed from"
            found.setdefault(node, f"{say}, more than {limits.finite:.3g}")


def _outputs(graph: fx.Graph) -> dict[str, fx.Node]:
    found: Any = output_of(graph).args[0]
    return {str(name): value for name, value in found.items() if isinstance(value, fx.Node)}


def _magnitude(value: torch.Tensor) -> float:
    """Return the largest finite magnitude."""
    low, high = (each.item() for each in torch.aminmax(value.detach().float()))
    if max(-low, high) < float("inf"):
        return float(max(-low, high))
    finite = value.detach()[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
