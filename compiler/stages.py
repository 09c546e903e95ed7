"""Stages: a graph split in several that run one after the other, and each of them as a Program of its own.

A stage's input is an input of the Program, or a value of an earlier stage, by name. What no stage is said to hold
(sizes, masks of constants) is copied into every stage that reads it; a size is asked of a value that the stage has
anyway, where one has it.

Not handled: Programs that have stages already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from burnish.compiler import interpreter
from burnish.compiler.graphs import calls, copy_graph, name_of, node_order, output_of, placeholders, updates
from burnish.compiler.operators import is_mutating, operator_name
from burnish.compiler.program import Program, Signature
from burnish.compiler.provenance import merged, provenance_of, set_provenance
from burnish.compiler.sizes import expression
from burnish.compiler.stand_ins import settled
from burnish.compiler.structure import Container, Leaf
from burnish.compiler.typing_rules import infer, on_types

__all__ = ["stage_graphs", "stage_programs"]


def stage_graphs(program: Program, parts: Mapping[str, Collection[fx.Node]]) -> dict[str, fx.Graph]:
    """Return the graphs that a graph falls into.

    Args:
        program: it has one graph.
        parts: the operators of every stage by its name, in order; what an operator reads is in its stage, in an earlier
            one, or in none: such operators are copied.
    """
    return _Splitter(program, parts).graphs()


def stage_programs(program: Program) -> dict[str, Program]:
    """Return every stage as a Program of one graph: tensors in, a tuple of tensors out, by position.

    Constants are shared. Where the Program has samples, so have they. A size that depends on data in an earlier stage
    is an ordinary dynamic size of the inputs.
    """
    values: dict[str, Any] = dict(program.samples)
    found = {}
    for name, graph in program.graphs.items():
        inputs = [str(node.target) for node in placeholders(graph)]
        outputs = list(output_of(graph).args[0])  # type: ignore[arg-type]
        samples = {each: values[each] for each in inputs} if values else {}
        stage = replace(
            program,
            graphs={"main": copy_graph(graph)},
            signature=Signature(
                Container("tuple", (), (_tuple(inputs), Container("dict", (), ()))), _tuple(outputs), tuple(inputs)
            ),
            samples=samples,
            conditions=(),
            notes=(),
        )
        stage.branches = {each: program.branches[each] for each in program.called_branches(graph)}
        stage.constants = stage.used_constants()
        _settle(stage)
        found[name] = stage
        if values:
            values.update(zip(outputs, interpreter.run(stage, samples)[0], strict=True))
    return found


def _tuple(names: Sequence[str]) -> Container:
    return Container("tuple", (), tuple(Leaf(name) for name in names))


def _settle(stage: Program) -> None:
    """Give inputs ordinary sizes in place of those that depended on data, and all that reads them types anew."""
    (graph,) = stage.graphs.values()
    changed = set[fx.Node]()
    for node in placeholders(graph):
        with on_types(stage.fake_mode):
            value = settled(node.meta["val"], stage.fake_mode.shape_env)
        if value is not node.meta["val"]:
            node.meta["val"] = value
            changed.add(node)
    for node in calls(graph):
        if not changed.isdisjoint(node.all_input_nodes):
            node.meta["val"] = infer(stage, node)
            changed.add(node)


class _Splitter:
    def __init__(self, program: Program, parts: Mapping[str, Collection[fx.Node]]) -> None:
        self.program = program
        (self.source,) = program.graphs.values()
        self.stage_of = {node: index for index, nodes in enumerate(parts.values()) for node in nodes}
        self.names = list(parts)
        self.outputs: dict[str, fx.Node] = dict(output_of(self.source).args[0])  # type: ignore[arg-type]
        self.orders: list[list[fx.Node]] = [[] for _ in parts]
        for node in node_order(self.source):
            if node in self.stage_of:
                self.orders[self.stage_of[node]].append(node)
        self.results: list[dict[str, fx.Node]] = [{} for _ in parts]
        homes = {str(each.args[0].target): self.stage_of[each] for each in updates(self.source)}  # type: ignore[union-attr]
        for name, node in self.outputs.items():
            # What no stage makes, the last one gives: an input, a constant, or what is copied. A buffer that is updated
            # is where that is done.
            home = homes.get(str(node.target), len(parts) - 1) if node.op == "get_attr" else len(parts) - 1
            self.results[self.stage_of.get(node, home)][name] = node
        self.crossing = {node: name for name, node in reversed(self.outputs.items()) if node in self.stage_of}
        self.read = set[fx.Node]()
        self.taken = {*program.signature.input_names, *self.outputs}

    def graphs(self) -> dict[str, fx.Graph]:
        # From the last one: what a stage reads, an earlier one gives.
        found = {index: self._graph(index) for index in reversed(range(len(self.names)))}
        return {name: found[index] for index, name in enumerate(self.names)}

    def _graph(self, index: int) -> fx.Graph:
        order = self.orders[index]
        wanted = [*order, *self.results[index].values()]
        inputs: list[fx.Node] = []
        self._collect(wanted, index, inputs, set())
        if index == 0:
            # An input that nothing reads is one all the same.
            inputs += [node for node in placeholders(self.source) if node not in self.read]
        stage = _Stage(self, index, inputs)
        # Buffers are updated when all that reads them has done so.
        for node in [each for each in order if not is_mutating(each.target)]:
            stage.value(node)
        made = {name: stage.value(node) for name, node in self.results[index].items()}
        for node in [each for each in order if is_mutating(each.target)]:
            stage.value(node)
        graph = stage.finish(made)
        self.read.update(stage.inputs)
        for node in stage.inputs:
            if node.op == "call_function":
                self.results[self.stage_of[node]][self.name(node)] = node
        return graph

    def _collect(self, nodes: Sequence[fx.Node], index: int, inputs: list[fx.Node], seen: set[fx.Node]) -> None:
        """Add to `inputs` what the operators read from outside of the stage, but for what is only asked for a size."""
        waiting = list(reversed(nodes))
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.is_outside(node, index):
                inputs.append(node)
            elif node.op == "call_function" and not (_is_size(node) and node not in self.stage_of):
                waiting += reversed(node.all_input_nodes)

    def is_outside(self, node: fx.Node, index: int) -> bool:
        """Tell whether a stage gets a value from outside."""
        return node.op == "placeholder" or self.stage_of.get(node, index) != index

    def name(self, node: fx.Node) -> str:
        """Return the name under which a value crosses."""
        if node.op == "placeholder":
            return str(node.target)
        if node not in self.crossing:
            name, ordinal = name_of(node), 0
            while name in self.taken:
                ordinal += 1
                name = f"{name_of(node)}_{ordinal}"
            self.taken.add(name)
            self.crossing[node] = name
        return self.crossing[node]


class _Stage:
    """The graph of a stage while it is made."""

    def __init__(self, splitter: _Splitter, index: int, inputs: Sequence[fx.Node]) -> None:
        self.splitter, self.index = splitter, index
        self.graph = fx.Graph()
        self.inputs: list[fx.Node] = []
        self.done: dict[fx.Node, fx.Node] = {}
        self.last: fx.Node | None = None
        # The first dimension of an input that is of a size.
        self.sizes: dict[Any, tuple[fx.Node, int]] = {}
        for node in inputs:
            self._input(node)

    def value(self, node: fx.Node) -> fx.Node:
        """Return the stage's own node for one of the whole graph."""
        stack = [node]
        while stack:
            each = stack[-1]
            if each in self.done:
                stack.pop()
                continue
            made = self._input(each) if self.splitter.is_outside(each, self.index) else self._size(each)
            missing = [] if made else [read for read in each.all_input_nodes if read not in self.done]
            if missing:
                stack += reversed(missing)
            else:
                self.done[each] = made or self._copy(each)
        return self.done[node]

    def finish(self, made: dict[str, fx.Node]) -> fx.Graph:
        """Give the graph its outputs, by name."""
        old = output_of(self.splitter.source)
        result = self.graph.output(made)
        result.meta = dict(old.meta)
        return self.graph

    def _copy(self, node: fx.Node) -> fx.Node:
        new = self.graph.node_copy(node, self.done.__getitem__)
        new.meta = dict(node.meta)
        return new

    def _input(self, node: fx.Node) -> fx.Node:
        if node not in self.done:
            with self.graph.inserting_after(self.last):
                new = self.last = self.graph.placeholder(self.splitter.name(node))
            value = node.meta["val"]
            new.meta = {"val": value, "name": name_of(node)}
            for dim, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                self.sizes.setdefault(expression(size), (new, dim))
            provenance = provenance_of(node)
            set_provenance(new, provenance if provenance is not None else merged([node], "partition:edge"))
            self.inputs.append(node)
            self.done[node] = new
        return self.done[node]

    def _size(self, node: fx.Node) -> fx.Node | None:
        """Return the size that a node asks for, of a value that the stage has; None where it has to be asked itself."""
        if not _is_size(node) or node in self.splitter.stage_of or node.all_input_nodes[0] in self.done:
            return None
        found = self.sizes.get(expression(node.meta["val"]))
        if found is None:
            return None
        new = self.graph.call_function(node.target, found)  # type: ignore[arg-type]
        new.meta = dict(node.meta)
        return new


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target) == "aten.sym_size.int"
