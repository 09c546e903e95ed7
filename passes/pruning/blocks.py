"""Residual blocks: sums `x + f(x)` of which f alone could go, because nothing else reads what it computes.

The block is the cone between the two: what f(x) is computed from that is itself computed from x. It holds a product, a
convolution say; whatever else it reads (weights, masks, states of an encoder) may be anything. Sums that are nearly
blocks are skipped with a reason.

One sweep finds for every node which residual streams it is computed from; then each sum walks over its own cone, from
the end, and stops at the first value that is read elsewhere.

Not handled: blocks in branches of `cond`; fused operators that add a residual (see `prune-blocks`); sums of numbers
that are no floats.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from burnish.compiler.cost_rules import work_of
from burnish.compiler.expressions import SymbolNames
from burnish.compiler.graphs import output_of
from burnish.compiler.operators import argument, find_operator, is_mutating
from burnish.compiler.printer import symbol_names
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.types_text import format_type
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import is_number, same_type, tensor_of
from burnish.passes.canonical.weights import described

__all__ = ["Block", "blocks_of"]

_ADD = find_operator("aten.add.Tensor")
# What reads the type of a value alone.
_TYPES = ("sym_size.int", "sym_numel", "sym_stride.int", "zeros_like", "ones_like", "full_like")
_OF_TYPES = frozenset(find_operator(f"aten.{name}") for name in _TYPES)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A residual block.

    Attributes:
        sum: the node of x + f(x).
        source: the node of x.
        inside: what computes f, in the order of the graph.
    """

    sum: fx.Node
    source: fx.Node
    inside: tuple[fx.Node, ...]


def blocks_of(program: Program, rewriter: Rewriter) -> list[Block]:
    """Return the residual blocks of all stages, in the order of their sums; what nearly is one is skipped."""
    found, names = [], symbol_names(program)
    for graph in program.graphs.values():
        stage = _Stage(graph)
        for node, (source, last) in stage.sums.items():
            if not stage.reach(source, last):
                continue
            try:
                inside = stage.between(source, last, node)
            except Refusal as refusal:
                # A mask and scores, which earlier layers computed with the mask, are not even nearly one.
                if same_type(source, last):
                    rewriter.skip(node, str(refusal))
                continue
            # The polynomial of a gelu that is spelled out is none.
            if not any(map(_works, inside)):
                continue
            reason = _objection(node, source, last, names)
            if reason is None:
                found.append(Block(node, source, inside))
            else:
                rewriter.skip(node, reason)
    return found


class _Stage:
    """The sums of one graph, and what is computed from what."""

    def __init__(self, graph: fx.Graph) -> None:
        self.places = {node: index for index, node in enumerate(graph.nodes)}
        self.live = _live(graph)
        # The sums of two computed values: the earlier one and the later one.
        self.sums: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        for node in graph.find_nodes(op="call_function", target=_ADD):
            values = [each for each in node.args[:2] if isinstance(each, fx.Node) and each.op != "get_attr"]
            if node in self.live and len(set(values)) == 2 and all(map(_is_floating, values)):
                first, last = sorted(values, key=self.places.__getitem__)
                self.sums[node] = first, last
        self.bits: dict[fx.Node, int] = {}
        for source, _ in self.sums.values():
            self.bits.setdefault(source, 1 << len(self.bits))
        self.above = self._above(graph.nodes)

    def reach(self, source: fx.Node, node: fx.Node) -> bool:
        """Tell whether `node` is computed from `source`, the first of a sum."""
        return bool(self.above[node] & self.bits[source])

    def between(self, source: fx.Node, last: fx.Node, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return what is between `source` and the sum `node`, on the way that ends in `last`.

        Raises:
            Refusal: something of it is read elsewhere.
        """
        inside = {last}
        # The last one first: then all that may read a value has been seen before it.
        queue = [(-self.places[last], last)]
        while queue:
            _, value = heapq.heappop(queue)
            outside = [user for user in value.users if user is not node and user not in inside and user in self.live]
            if outside:
                by = "the outputs" if outside[0].op == "output" else described(outside[0])
                raise Refusal(f"{described(value)} inside is read outside of it, by {by}")
            for each in value.all_input_nodes:
                if each is not source and each not in inside and self.reach(source, each):
                    inside.add(each)
                    heapq.heappush(queue, (-self.places[each], each))
        return tuple(sorted(inside, key=self.places.__getitem__))

    def _above(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, int]:
        """Return for every node which sources it is computed from, as bits. The type of a value is not its value."""
        above: dict[fx.Node, int] = {}
        for node in nodes:
            found = 0
            for each in node.all_input_nodes:
                more = above[each] | (0 if node.target in _OF_TYPES else self.bits.get(each, 0))
                # An int of many bits is shared where it can be.
                found = found | more if found and more else found or more
            above[node] = found
        return above


def _objection(node: fx.Node, source: fx.Node, last: fx.Node, names: SymbolNames) -> str | None:
    """Say why the sum does not hand on its source as it is, but for what comes between."""
    if not same_type(source, last):
        types = " and ".join(format_type(each.meta["val"], names) for each in (source, last))
        return f"its sides differ: {types}"
    alpha = argument(node, "alpha")
    return None if is_number(alpha, 1) else f"it scales a side: alpha is {alpha}"


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output or an update of a buffer needs."""
    live = {output_of(graph)}
    for node in reversed(graph.nodes):
        if node in live or (node.op == "call_function" and is_mutating(node.target)):
            live.update((node, *node.all_input_nodes))
    return live


def _works(node: fx.Node) -> bool:
    """Tell whether an operator multiplies and adds, as far as is known."""
    work = work_of(node)
    return work is None or work.macs != 0


def _is_floating(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.is_floating_point()
