"""Replace fused operators by their reference decompositions, for a backend that has no kernel for them.

What comes in has the origins of the fused operator, and its name with the inner operator's behind it; the result keeps
the name. Operators of one kind, on inputs of one type, are traced once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from burnish.compiler.errors import BurnishError
from burnish.compiler.expansion import expansion, splice
from burnish.compiler.fused import is_fused
from burnish.compiler.graphs import NameTable, calls, name_of
from burnish.compiler.operators import operator_name
from burnish.compiler.program import Program
from burnish.compiler.provenance import merged, set_provenance
from burnish.compiler.typing_rules import type_key

__all__ = ["inline_fused"]


def inline_fused(program: Program, keep: Callable[[fx.Node], bool] = lambda _: False) -> Program:
    """Return `program` with every `burnish::` operator that `keep` refuses taken apart into ATen operators.

    The result is a copy, or `program` itself where there is nothing to do. Branches are treated like stages.

    Raises:
        BurnishError: an operator's decomposition cannot be traced.
    """
    if not any(_refused(graph, keep) for _, graph in program.all_graphs()):
        return program
    program = program.copy()
    bodies: dict[Any, fx.Graph] = {}
    for _, graph in program.all_graphs():
        table: NameTable | None = None
        for node in _refused(graph, keep):
            table = table or NameTable(graph)
            _inline(node, program, bodies, table)
    return program


def _refused(graph: fx.Graph, keep: Callable[[fx.Node], bool]) -> list[fx.Node]:
    return [node for node in calls(graph) if is_fused(node.target) and not keep(node)]


def _inline(node: fx.Node, program: Program, bodies: dict[Any, fx.Graph], table: NameTable) -> None:
    key = type_key(node)
    body = bodies.get(key)
    if body is None:
        found = expansion(node, program.fake_mode)
        if found is None:
            raise BurnishError(f"{name_of(node)}: {operator_name(node.target)} cannot be taken apart for these inputs")
        body = bodies[key] = found
    provenance = merged([node], f"inline:{operator_name(node.target)}")
    made, replaced = splice(node, body)
    taken = {new: name_of(old) for old, new in reversed(replaced)}
    for each in made:
        short = operator_name(each.target).split(".")
        each.meta["name"] = taken.get(each) or table.unique(f"{name_of(node)}.{short[min(1, len(short) - 1)]}")
        set_provenance(each, provenance)
