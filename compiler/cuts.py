"""Cut points: values that all further work goes through, so that the graph falls in two there.

Work is what multiplies: convolutions and products of matrices. A value that no work went into (a mask, positions, an
embedding) may be read on both sides of a cut: it costs next to nothing.

Cut points are the dominators of the outputs among the nodes that work went into, so there is none inside a residual
block or beside a skip connection.

Not handled: Programs of several stages; updates of buffers, which belong to no side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx
from torch import fx

from burnish.compiler.cost import Figures
from burnish.compiler.cost_memory import value_bytes
from burnish.compiler.cost_numbers import estimated, evaluated
from burnish.compiler.cost_sizes import bindings
from burnish.compiler.graphs import calls, name_of, output_of
from burnish.compiler.program import Program

__all__ = ["Cut", "ancestors", "apart", "cut_points", "figures_of"]

_START = "start"


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where a graph falls in two.

    Attributes:
        value: what all work behind the cut is computed from.
        behind: the operators behind the cut: they are computed from the value.
        sides: other values from before that these read; no work went into them.
        macs: of the work before, at the sizes of the samples.
        flops: the same.
        bytes: of the value and the sides, at the sizes of the samples.
    """

    value: fx.Node
    behind: frozenset[fx.Node]
    sides: tuple[fx.Node, ...]
    macs: int
    flops: int
    bytes: int


def cut_points(program: Program) -> list[Cut]:
    """Return the cut points of a Program of one stage, from the first to the last; [] where no work is done.

    Raises:
        InputError: the Program has dynamic sizes and no samples.
    """
    (graph,) = program.graphs.values()
    figures = figures_of(program)
    worked = _worked(graph, figures)
    sizes = bindings(program.cost().inputs, program.cost().samples)
    cuts: list[Cut] = []
    before = set[fx.Node]()
    macs = flops = 0
    for value in _dominators(graph, worked):
        new = ancestors([value], before) & worked
        before |= new
        macs += sum(estimated(figures[node].macs) for node in new)
        flops += sum(estimated(figures[node].flops) for node in new)
        behind = worked - before
        read = [each for node in graph.nodes if node in behind for each in node.all_input_nodes]
        sides = tuple(dict.fromkeys(each for each in read if each not in worked and each.op != "get_attr"))
        size = sum(estimated(evaluated(value_bytes(each), sizes)) for each in (value, *sides))
        cuts.append(Cut(value, frozenset(behind), sides, macs, flops, size))
    return cuts


def apart(cuts: Sequence[Cut]) -> list[Cut]:
    """Return the last one of cut points without work between them: the activation, not the convolution before it."""
    return [cut for index, cut in enumerate(cuts) if index + 1 == len(cuts) or cuts[index + 1].macs > cut.macs]


def figures_of(program: Program) -> dict[fx.Node, Figures]:
    """Return what every operator costs at the sizes of the samples.

    Raises:
        InputError: the Program has dynamic sizes and no samples.
    """
    known = {(each.graph, each.name): each.figures for each in program.cost().at_samples().nodes}
    return {node: known[name, name_of(node)] for name, graph in program.graphs.items() for node in calls(graph)}


def ancestors(nodes: Iterable[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """Return `nodes` and what they are computed from, but for what is `known` and what that is computed from."""
    found, waiting = set[fx.Node](), [node for node in nodes if node not in known]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [each for each in node.all_input_nodes if each not in known and each not in found]
    return found


def _worked(graph: fx.Graph, figures: Mapping[fx.Node, Figures]) -> set[fx.Node]:
    """Return the operators that work went into."""
    found = set[fx.Node]()
    for node in calls(graph):
        if _works(node, figures) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _works(node: fx.Node, figures: Mapping[fx.Node, Figures]) -> bool:
    return node in figures and figures[node].macs != 0


def _dominators(graph: fx.Graph, worked: set[fx.Node]) -> list[fx.Node]:
    """Return the operators that every path of work to the outputs goes through, the first one first.

    Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001), in networkx.
    """
    end = output_of(graph)
    edges = networkx.DiGraph()
    for node in (*calls(graph), end):
        read: list[fx.Node | str] = [each for each in node.all_input_nodes if each in worked]
        if node in worked or node is end:
            edges.add_edges_from((each, node) for each in read or [_START])
    above = networkx.immediate_dominators(edges, _START)
    chain: list[fx.Node] = []
    node = above.get(end)
    while node is not None and node != _START:
        chain.append(node)
        node = above[node]
    return chain[::-1]
