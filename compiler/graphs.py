"""Functions on one `fx.Graph`: names, constants, copies, canonical order, structural hash.

A graph's nodes are placeholders (`target` is the input's name), get_attr (`target` is the name of a constant, or of a
branch of a higher-order operator), call_function (operators) and one output, whose argument is a dict from output
names to nodes (in a branch a tuple). Display names (`layer1.0.conv1`) are in `node.meta["name"]`, unique in a graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import fx

from burnish.compiler.operators import is_mutating

__all__ = ["NameTable", "calls", "copy_graph", "name_of", "node_order", "output_of", "placeholders", "structural_key"]

_ILLEGAL = re.compile(r"[^0-9A-Za-z_.]+")


def name_of(node: fx.Node) -> str:
    """Return the display name of `node`."""
    return str(node.meta.get("name", node.name))


def output_of(graph: fx.Graph) -> fx.Node:
    """Return the output node of `graph`."""
    return graph.output_node()


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """Return the inputs of `graph` in order."""
    return graph.find_nodes(op="placeholder")


def calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the operator nodes of `graph` in graph order."""
    for node in graph.nodes:
        if node.op == "call_function":
            yield node


def updates(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes that write a buffer back (`aten.copy_` onto a constant): they are kept, and they come last."""
    for node in graph.nodes:
        if node.op == "call_function" and is_mutating(node.target):
            yield node


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Copy `graph`, its nodes' meta dictionaries included; the values inside them are shared."""
    copy = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    look_up = done.__getitem__
    for node in graph.nodes:
        # The arguments come afterwards: those that a node is made with, fx walks once more (for raw symbolic sizes).
        new = done[node] = copy.create_node(node.op, node.target, name=node.name, type_expr=node.type)
        new.args = fx.node.map_arg(node.args, look_up)
        if node.kwargs:
            new.kwargs = fx.node.map_arg(node.kwargs, look_up)
        new.meta.update(node.meta)
    return copy


class NameTable:
    """Gives unique display names within a graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self._taken = {name_of(node) for node in graph.nodes}
        self._tried: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._taken

    def unique(self, wanted: str) -> str:
        """Return `wanted`, or `wanted_1`, `wanted_2`, ... when it is taken, and take it."""
        base = _ILLEGAL.sub("_", wanted).strip(".") or "value"
        base = base if not base[0].isdigit() else f"_{base}"
        # Names are never given back: what was taken at the last call for this one still is.
        ordinal = self._tried.get(base, 0)
        name = f"{base}_{ordinal}" if ordinal else base
        while name in self._taken:
            ordinal += 1
            name = f"{base}_{ordinal}"
        self._tried[base] = ordinal
        self._taken.add(name)
        return name


def node_order(graph: fx.Graph) -> list[fx.Node]:
    """Return the call nodes in canonical topological order: depth first from the outputs, arguments left to right.

    The order is a function of the structure alone: it does not depend on the order in which passes inserted nodes.
    Nodes that no output needs come after those that one does, buffer updates last.
    """
    roots = [output_of(graph)]
    rest = [node for node in graph.nodes if node.op == "call_function"]
    seen: set[fx.Node] = set()
    order: list[fx.Node] = []
    last = [node for node in rest if is_mutating(node.target)]
    roots += [node for node in rest if not node.users and not is_mutating(node.target)] + last
    for root in roots:
        stack: list[tuple[fx.Node, Iterator[fx.Node]]] = [(root, iter(root.all_input_nodes))]
        seen.add(root)
        while stack:
            node, inputs = stack[-1]
            for each in inputs:
                if each not in seen:
                    seen.add(each)
                    if each.op == "call_function":
                        stack.append((each, iter(each.all_input_nodes)))
                        break
            else:
                stack.pop()
                if node.op == "call_function":
                    order.append(node)
    if last:
        tail = set(last)
        order = [node for node in order if node not in tail] + last
    return order


def structural_key(graph: fx.Graph) -> int:
    """Return a hash of what `graph` computes: operators, arguments and wiring, not names, order or provenance.

    Equal within one process only. Constants count by name, so a changed value must be noticed elsewhere.
    """
    keys: dict[fx.Node, int] = {}
    for index, node in enumerate(placeholders(graph)):
        keys[node] = hash(("input", index))
    for node in graph.nodes:
        if node.op == "get_attr":
            keys[node] = hash(("constant", node.target))

    def of(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return keys[value]
        if isinstance(value, (list, tuple)):
            return tuple([keys[each] if isinstance(each, fx.Node) else of(each) for each in value])
        if isinstance(value, dict):
            return tuple((name, of(each)) for name, each in sorted(value.items()))
        if isinstance(value, slice):
            return (of(value.start), of(value.stop), of(value.step))
        if isinstance(value, float) or value == -1:
            # hash(-1) is hash(-2), and -0.0 equals 0.0.
            return (type(value), repr(value))
        return (type(value), value)

    # All nodes count, not only what the outputs reach: dead ones differ, and computing a thing once or twice differs.
    total = 0
    for node in graph.nodes:
        if node.op == "call_function":
            keys[node] = key = hash((node.target, of(node.args), of(node.kwargs) if node.kwargs else ()))
            total += key
    return hash((of(output_of(graph).args), total))
