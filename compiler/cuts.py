"""Cut points: values that all further work goes through, so that the graph falls in two there.

Work is what multiplies: convolutions and products of matrices. A value that no work went into (a mask, positions, an
embedding) may be read on both sides of a cut: it costs next to nothing.

Cut points are the dominators of the outputs among the nodes that work went into, so there is none inside a residual
block or beside a skip connection.

Not handled: Programs of several stages; updates of buffers, which belong to no side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx
from torch import fx

from burnish.compiler.cost import Figures
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.graphs import calls, name_of, output_of
from burnish.compiler.program import Program

__all__ = ["Cut", "ancestors", "apart", "cut_points", "figures_of"]

_START = "start"


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where a graph falls in two.

    Attributes:
        value: what all work behind the cut is computed from.
        number: of the cut, from 0, the first one.
        macs: of the work before, at the sizes of the samples.
        flops: the same.
        segments: for every operator that work went into, in the graph's order, how many cuts it stands behind.
    """

    value: fx.Node
    number: int
    macs: int
    flops: int
    segments: Mapping[fx.Node, int] = field(compare=False, repr=False)

    def is_before(self, node: fx.Node) -> bool:
        """Tell whether an operator is computed from the value."""
        return self.segments.get(node, 0) > self.number

    def behind(self) -> list[fx.Node]:
        """Return the operators that are computed from the value, in the graph's order."""
        return [node for node, segment in self.segments.items() if segment > self.number]


def cut_points(program: Program) -> list[Cut]:
    """Return the cut points of a Program of one stage, from the first to the last; [] where no work is done.

    Raises:
        InputError: the Program has dynamic sizes and no samples.
    """
    (graph,) = program.graphs.values()
    figures = figures_of(program)
    worked = _worked(graph, figures)
    dominators = _dominators(graph, worked)
    segments = dict.fromkeys((node for node in graph.nodes if node in worked), len(dominators))
    cuts: list[Cut] = []
    known = set[fx.Node]()
    macs = flops = 0
    for number, value in enumerate(dominators):
        new = ancestors([value], known)
        known |= new
        for node in new & worked:
            segments[node] = number
            macs += estimated(figures[node].macs)
            flops += estimated(figures[node].flops)
        cuts.append(Cut(value, number, macs, flops, segments))
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
