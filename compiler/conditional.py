"""Conditionals: the operator `cond`, and the graphs that it chooses from, which may have a `cond` themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from burnish.compiler.graphs import placeholders

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["COND", "Conditional", "branch_module", "conditional"]

COND = torch.ops.higher_order.cond


@dataclass(frozen=True, slots=True)
class Conditional:
    """What a `cond` reads.

    Attributes:
        predicate: a node with one bool.
        branches: names of the graphs for true and for false.
        operands: what their placeholders stand for, in order.
    """

    predicate: Any
    branches: tuple[str, str]
    operands: tuple[Any, ...]

    def inputs(self, program: Program) -> Iterator[tuple[fx.Node, Any]]:
        """Yield every placeholder of both branches, with its operand."""
        for name in self.branches:
            yield from zip(placeholders(program.branches[name]), self.operands, strict=True)


def branch_module(branches: Mapping[str, fx.Graph], name: str) -> fx.GraphModule:
    """Return a branch, with the branches that it refers to, as a module, which is what `cond` takes."""
    inner = {str(node.target) for node in branches[name].find_nodes(op="get_attr")}
    modules: dict[str, Any] = {each: branch_module(branches, each) for each in inner}
    return fx.GraphModule(modules, branches[name])


def conditional(node: fx.Node) -> Conditional | None:
    """Return what a `cond` reads; None for every other node."""
    if node.target is not COND:
        return None
    predicate, when_true, when_false, *rest = node.args
    operands: Any = rest[0] if rest else node.kwargs.get("operands", ())
    assert isinstance(when_true, fx.Node) and isinstance(when_false, fx.Node)
    return Conditional(predicate, (str(when_true.target), str(when_false.target)), tuple(operands))
