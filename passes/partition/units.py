"""Units: the parts of a graph that a cut keeps whole, and the values between them.

    together   the results of an operator with several, smaller views with what they view, all that reads or updates a
               buffer which the model updates, and what lies between such
    copied     in every stage that reads them, for they cost next to nothing: sizes, what is made of constants and sizes
               alone (positions, causal masks, dequantized weights), dequantized values, which cross as integers, and
               views of all of a value

Not handled: Programs that have stages already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import networkx
import torch
from torch import fx

from burnish.compiler.cost import NodeCost
from burnish.compiler.cost_memory import Storage, value_bytes
from burnish.compiler.cost_numbers import estimated, evaluated
from burnish.compiler.cost_sizes import bindings
from burnish.compiler.graphs import calls, name_of, node_order, output_of, placeholders
from burnish.compiler.operators import is_mutating, is_random, operator_name
from burnish.compiler.program import Program
from burnish.passes.partition.problem import Value, Weight

__all__ = ["Units", "units_of"]

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)
_DEQUANTIZE = "quantized_decomposed.dequantize"


@dataclass(frozen=True)
class Units:
    """A graph in units.

    Attributes:
        members: the operators of every unit, in canonical order.
        values: what units read of each other, in order of their nodes.
        weights: constants that units read, in order of their names.
        costs: what every operator costs at the sizes of the samples.
    """

    members: tuple[tuple[fx.Node, ...], ...]
    values: tuple[Value, ...]
    weights: tuple[Weight, ...]
    costs: Mapping[fx.Node, NodeCost]


def units_of(program: Program, tied: bool = False) -> Units:
    """Return the units of a Program of one stage.

    Args:
        program: it has samples, or no dynamic sizes.
        tied: all that reads a constant stays together.

    Raises:
        InputError: the Program has dynamic sizes and no samples.
    """
    (graph,) = program.graphs.values()
    cost = program.cost()
    by_name = {each.name: each for each in cost.at_samples().nodes}
    sizes = bindings(cost.inputs, cost.samples)
    order = node_order(graph)
    costs = {node: by_name[name_of(node)] for node in order if name_of(node) in by_name}
    bytes_of = {node: estimated(evaluated(value_bytes(node), sizes)) for node in (*placeholders(graph), *order)}
    storage = Storage(graph)
    views = {
        node: source
        for node in order
        if storage.is_view(node) and (source := _viewed(node)) is not None and bytes_of[node] <= bytes_of[source]
    }
    same = {node for node, source in views.items() if bytes_of[node] == bytes_of[source]}
    updated = program.mutable_constants()
    copied = _copied(order, costs, same, updated)
    reads = _reads((*order, output_of(graph)), copied)
    whole = _whole(program, [node for node in order if node not in copied], reads, views, tied)
    position = {node: index for index, node in enumerate(order)}
    unit_of, members = _numbered(whole, position)
    values = _values(graph, unit_of, len(members), reads, bytes_of)
    return Units(tuple(map(tuple, members)), values, _weights(program, unit_of, reads), costs)


def _reads(order: Iterable[fx.Node], copied: Set[fx.Node]) -> dict[fx.Node, Mapping[fx.Node, None]]:
    """Return what every operator reads, in a topological order of them: of what is copied, what that reads."""
    found: dict[fx.Node, Mapping[fx.Node, None]] = {}
    for node in order:
        reads: dict[fx.Node, None] = {}
        for each in node.all_input_nodes:
            if each not in copied:
                reads[each] = None
            # A size is asked of any value that has it.
            elif operator_name(each.target) != "aten.sym_size.int":
                reads.update(found[each])
        found[node] = reads
    return found


def _viewed(node: fx.Node) -> fx.Node | None:
    """Return the one tensor that a view is of."""
    inputs = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor)]
    return inputs[0] if len(inputs) == 1 and inputs[0].op != "get_attr" else None


def _copied(
    order: Iterable[fx.Node], costs: Mapping[fx.Node, NodeCost], views: Set[fx.Node], updated: Set[str]
) -> set[fx.Node]:
    """Return the operators that are copied."""
    found = set[fx.Node]()
    for node in order:
        if is_mutating(node.target) or is_random(node):
            continue
        name = operator_name(node.target)
        sourceless = all(each.op == "get_attr" or each in found for each in node.all_input_nodes)
        works = (node in costs and costs[node].figures.macs != 0) or name == "higher_order.cond"
        is_number = isinstance(node.meta.get("val"), _NUMBERS)
        # What is dequantized with a scale of its own call stays with what made the scale.
        dequantizes = name.startswith(_DEQUANTIZE) and all(
            isinstance(each.meta.get("val"), torch.Tensor) and (each.op == "get_attr" or each is node.args[0])
            for each in node.all_input_nodes
        )
        if any(each.op == "get_attr" and each.target in updated for each in node.all_input_nodes):
            # What it reads may be another value in another stage.
            continue
        if is_number or (sourceless and not works) or dequantizes or node in views:
            found.add(node)
    return found


def _whole(
    program: Program,
    order: list[fx.Node],
    reads: Mapping[fx.Node, Mapping[fx.Node, None]],
    views: Mapping[fx.Node, fx.Node],
    tied: bool,
) -> networkx.DiGraph:
    """Return a graph whose cycles are what stays together."""
    edges = networkx.DiGraph()
    edges.add_nodes_from(order)
    updated = program.mutable_constants()
    readers: dict[str, list[fx.Node]] = {}
    for node in order:
        read = list(reads[node])
        made = [each for each in read if each.op == "call_function"]
        edges.add_edges_from((each, node) for each in made)
        several = [each for each in made if not isinstance(each.meta.get("val"), torch.Tensor)]
        edges.add_edges_from((node, each) for each in several)
        # Ranges of a call, what is quantized with them, and the layers that read it: kernels that take all of it.
        edges.add_edges_from((node, each) for each in made if _is_ranged(each))
        if not node.users and not is_mutating(node.target):
            # An assertion is no stage.
            edges.add_edges_from([(node, each) for each in made[:1]] or [(node, order[0]), (order[0], node)])
        if node in views and [each for each in read if each.op != "get_attr"] == made and len(made) == 1:
            edges.add_edge(node, made[0])
        for each in read:
            if each.op == "get_attr" and each.target in program.constants and (tied or each.target in updated):
                readers.setdefault(str(each.target), []).append(node)
    for nodes in readers.values():
        networkx.add_cycle(edges, nodes)
    return edges


def _is_ranged(node: fx.Node) -> bool:
    """Tell whether a value is a range that a call chose, or is quantized or dequantized with one."""
    name = operator_name(node.target)
    if name == "getitem":
        return _is_ranged(node.all_input_nodes[0])
    if name.startswith("quantized_decomposed.choose_qparams"):
        return True
    others = node.all_input_nodes[1:] if name.startswith("quantized_decomposed.") else []
    return any(each.op == "call_function" and _is_ranged(each) for each in others)


def _numbered(
    whole: networkx.DiGraph, position: Mapping[fx.Node, int]
) -> tuple[dict[fx.Node, int], list[list[fx.Node]]]:
    """Return the unit of every operator, and the operators of every unit, in a topological order."""
    condensed = networkx.condensation(whole)
    parts = {part: sorted(data["members"], key=position.__getitem__) for part, data in condensed.nodes(data=True)}
    ordered = networkx.lexicographical_topological_sort(condensed, key=lambda part: position[parts[part][-1]])
    members = [parts[part] for part in ordered]
    return {node: unit for unit, nodes in enumerate(members) for node in nodes}, members


def _values(
    graph: fx.Graph,
    unit_of: Mapping[fx.Node, int],
    units: int,
    reads: Mapping[fx.Node, Mapping[fx.Node, None]],
    bytes_of: Mapping[fx.Node, int],
) -> tuple[Value, ...]:
    readers: dict[fx.Node, set[int]] = {}
    for node in (*unit_of, output_of(graph)):
        for each in reads[node]:
            if each.op != "get_attr":
                readers.setdefault(each, set()).add(unit_of.get(node, units))
    values = []
    for node in (*placeholders(graph), *calls(graph)):
        source = unit_of.get(node, -1)
        others = readers.get(node, set()) - {source}
        if others:
            values.append(Value(source, tuple(sorted(others)), bytes_of[node]))
    return tuple(values)


def _weights(
    program: Program, unit_of: Mapping[fx.Node, int], reads: Mapping[fx.Node, Mapping[fx.Node, None]]
) -> tuple[Weight, ...]:
    readers: dict[str, set[int]] = {}
    for node, unit in unit_of.items():
        # Branches hold no constants: they get them as operands.
        for each in reads[node]:
            if each.op == "get_attr" and each.target in program.constants:
                readers.setdefault(str(each.target), set()).add(unit)
    constants = program.constants
    return tuple(
        Weight(tuple(sorted(units)), constants[name].numel() * constants[name].element_size())
        for name, units in sorted(readers.items())
    )
