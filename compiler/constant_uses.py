"""Where the constants of a Program are used: which operators read them, as what.

What is computed of constants alone, a weight times its mask, counts as its constants do: the operator that reads it
together with something that an input decides is what uses them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import fx

from burnish.compiler.conditional import conditional
from burnish.compiler.graphs import calls
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.program import Program

__all__ = ["Use", "is_parameter", "uses_of"]

_PRODUCTS = frozenset({"aten.matmul", "aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten.einsum"})
_PARAMETERS = frozenset({"weight", "bias", "input_bias"})


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a constant.

    Attributes:
        node: what reads it.
        operator: the name of its operator.
        slot: which of its arguments it is; "" where it is an item of a list.
    """

    node: fx.Node
    operator: str
    slot: str


def uses_of(program: Program) -> dict[str, list[Use]]:
    """Return the uses of every constant that some graph reads, by name, in order."""
    found: dict[str, list[Use]] = {}
    for graph in program.graphs.values():
        _collect(program, graph, {}, found)
    return found


def _collect(
    program: Program, graph: fx.Graph, stands_for: dict[fx.Node, frozenset[str]], found: dict[str, list[Use]]
) -> None:
    """Add the uses in a graph; `stands_for` has the constants that its inputs are, in a branch."""
    for node in graph.find_nodes(op="get_attr"):
        if node.target in program.constants:
            stands_for[node] = frozenset({str(node.target)})
            found.setdefault(str(node.target), [])
    for node in calls(graph):
        choice, read = conditional(node), node.all_input_nodes
        if choice is not None:
            inside = {each: stands_for[operand] for each, operand in choice.inputs(program) if operand in stands_for}
            for name in choice.branches:
                _collect(program, program.branches[name], inside, found)
            continue
        if read and all(each in stands_for for each in read):
            stands_for[node] = frozenset().union(*(stands_for[each] for each in read))
            continue
        slots = _slots(node) if any(each in stands_for for each in read) else {}
        for each in read:
            for name in sorted(stands_for.get(each, ())):
                found[name] += (Use(node, operator_name(node.target), slot) for slot in slots.get(each, [""]))


def is_parameter(uses: list[Use]) -> bool:
    """Tell whether a constant is what training changes: a weight or bias, or a factor of a product of matrices.

    Statistics of norms, masks and tables of positions are none.
    """
    return any(use.slot in _PARAMETERS or use.operator in _PRODUCTS for use in uses)


def _slots(node: fx.Node) -> dict[fx.Node, list[str]]:
    found = defaultdict(list)
    for name, value in arguments(node).items():
        if isinstance(value, fx.Node):
            found[value].append(name)
    return found
