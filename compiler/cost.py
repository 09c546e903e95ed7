"""Cost of a Program: FLOPs, bytes, parameters and peak activation memory, symbolic in the dynamic dimensions.

Numbers are ints where everything is static and sympy expressions over the shape symbols elsewhere. `at` puts sizes in:
it takes shapes of inputs by name, not symbols, since inputs are what a user knows by name.

    cost = program.cost()
    cost.flops                                    # 3627122688*s77 + ...
    cost.at_samples().flops                       # an int, at the sizes of the example inputs
    cost.at({"x": (8, 3, 224, 224)}).table(depth=1)

A multiply-add is 2 FLOPs and 1 MAC; `cost_rules.py` has the rules, `cost_memory.py` the memory model. A conditional
costs its larger branch, figure by figure.

Not handled: loops (`while_loop`, `scan`), which count 0 FLOPs and are listed as unknown; sizes that depend on data
(`nonzero`) stay symbolic after `at`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from torch import fx

from burnish.compiler import cost_fused  # noqa: F401  registers its rules
from burnish.compiler.conditional import Conditional, conditional
from burnish.compiler.cost_memory import Storage, live_bytes
from burnish.compiler.cost_numbers import Number, Shape, evaluated, larger, total
from burnish.compiler.cost_rules import Work, work_of
from burnish.compiler.cost_sizes import Sizes, bindings, size_of
from burnish.compiler.graphs import name_of, placeholders
from burnish.compiler.operators import operator_name
from burnish.compiler.provenance import provenance_of

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["Cost", "Figures", "NodeCost", "cost_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What some part of a Program costs.

    Attributes:
        flops: floating-point operations.
        macs: multiply-adds of matrix products, convolutions and recurrent layers; 2 of the FLOPs each.
        bytes_read: bytes that operators read, each operand once per operator that reads it.
        bytes_written: bytes that operators write.
        parameters: elements of the constants that operators read, each constant once.
        parameter_bytes: their bytes.
        peak_activation_bytes: most bytes of inputs and intermediate values alive while an operator of it runs.
    """

    flops: Number = 0
    macs: Number = 0
    bytes_read: Number = 0
    bytes_written: Number = 0
    parameters: Number = 0
    parameter_bytes: Number = 0
    peak_activation_bytes: Number = 0


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What one operator node costs.

    Attributes:
        graph: name of its graph.
        name: its display name.
        operator: name of its operator.
        module: path of the module that it came from; for a merged node the innermost one, else what they share.
        constants: names of the constants that it reads.
        figures: its costs; `peak_activation_bytes` is what is alive while it runs.
    """

    graph: str
    name: str
    operator: str
    module: str
    constants: tuple[str, ...]
    figures: Figures


@dataclass(frozen=True)
class Cost:
    """What a Program costs.

    Attributes:
        nodes: operator nodes of every stage, in canonical order; a conditional is one node.
        graphs: figures by stage.
        total: figures of the whole; `cost.flops` and so on are short for `cost.total.flops`.
        unknown: names of the operators without a FLOP rule, which count 0 FLOPs.
        inputs: shapes of the inputs by name; a number's own value in place of a shape.
        samples: shapes (or values) of the sample inputs.
        constants: elements and bytes of each constant.
    """

    nodes: tuple[NodeCost, ...]
    graphs: Mapping[str, Figures]
    total: Figures
    unknown: tuple[str, ...]
    inputs: Mapping[str, Shape | Number]
    samples: Mapping[str, Shape | Number]
    constants: Mapping[str, tuple[int, int]]

    @property
    def flops(self) -> Number:
        """Floating-point operations."""
        return self.total.flops

    @property
    def macs(self) -> Number:
        """Multiply-adds."""
        return self.total.macs

    @property
    def bytes_read(self) -> Number:
        """Bytes read."""
        return self.total.bytes_read

    @property
    def bytes_written(self) -> Number:
        """Bytes written."""
        return self.total.bytes_written

    @property
    def parameters(self) -> Number:
        """Elements of all constants that are read, tied ones once."""
        return self.total.parameters

    @property
    def parameter_bytes(self) -> Number:
        """Bytes of all constants that are read, tied ones once."""
        return self.total.parameter_bytes

    @property
    def peak_activation_bytes(self) -> Number:
        """Most bytes of activations alive at a time."""
        return self.total.peak_activation_bytes

    def at(self, inputs: Sizes) -> Cost:
        """Return the cost for inputs of given shapes: numbers become ints, but for sizes that depend on data.

        Args:
            inputs: a tensor or a shape (or a number, for a number) for every input that has dynamic sizes.

        Raises:
            InputError: an input is unknown, has another rank or static size, disagrees with another one, or is missing.
        """
        sizes = bindings(self.inputs, inputs)
        known: dict[Number, Number] = {}

        def value(each: Number) -> Number:
            if isinstance(each, int):
                return each
            if each not in known:
                known[each] = evaluated(each, sizes)
            return known[each]

        def figures(each: Figures) -> Figures:
            return Figures(**{field.name: value(getattr(each, field.name)) for field in fields(Figures)})

        return replace(
            self,
            nodes=tuple(replace(node, figures=figures(node.figures)) for node in self.nodes),
            graphs={name: figures(each) for name, each in self.graphs.items()},
            total=figures(self.total),
            inputs={
                name: tuple(value(size) for size in shape) if isinstance(shape, tuple) else value(shape)
                for name, shape in self.inputs.items()
            },
        )

    def at_samples(self) -> Cost:
        """Return the cost at the sizes of the Program's sample inputs.

        Raises:
            InputError: the Program has dynamic sizes and no samples.
        """
        return self.at(self.samples)

    def by_module(self, depth: int | None = None) -> dict[str, Figures]:
        """Return the figures of every module with all that it contains, "" being the whole, in order of first use.

        Args:
            depth: leave out modules whose path has more parts than this.
        """
        members: dict[str, list[NodeCost]] = {"": []}
        for node in self.nodes:
            parts = node.module.split(".") if node.module else []
            for length in range(len(parts[:depth]) + 1):
                members.setdefault(".".join(parts[:length]), []).append(node)
        return {module: _sum(nodes, self.constants) for module, nodes in members.items()}

    def table(self, depth: int | None = 1) -> list[dict[str, str | Number]]:
        """Return `by_module(depth)` as rows of plain values, columns "module", "flops", "macs" and so on."""
        return [
            {"module": module, **{field.name: getattr(figures, field.name) for field in fields(Figures)}}
            for module, figures in self.by_module(depth).items()
        ]


def cost_of(program: Program) -> Cost:
    """Return what `program` costs, in time linear in its nodes. It adds no guards to the shape environment."""
    costing = _Costing(program)
    nodes = {name: costing.graph(name, graph) for name, graph in program.graphs.items()}
    everything = tuple(node for each in nodes.values() for node in each)
    inputs: dict[str, Shape | Number] = {}
    for graph in program.graphs.values():
        for node in placeholders(graph):
            if node.target in program.signature.input_names:
                inputs.setdefault(str(node.target), size_of(node.meta.get("val")))
    return Cost(
        nodes=everything,
        graphs={name: _sum(each, costing.constants) for name, each in nodes.items()},
        total=_sum(everything, costing.constants),
        unknown=tuple(sorted(costing.unknown)),
        inputs=inputs,
        samples={name: size_of(value) for name, value in program.samples.items()},
        constants=costing.constants,
    )


class _Costing:
    """Costs the graphs of one Program, each branch once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.unknown: set[str] = set()
        self.constants = {
            name: (tensor.numel(), tensor.numel() * tensor.element_size())
            for name, tensor in program.used_constants().items()
        }
        self.branches: dict[str, Figures] = {}

    def graph(self, name: str, graph: fx.Graph, is_branch: bool = False) -> list[NodeCost]:
        storage = Storage(graph)
        conditionals = {node: self._conditional(found) for node in storage.order if (found := conditional(node))}
        temporary = {node: figures.peak_activation_bytes for node, figures in conditionals.items()}
        alive = live_bytes(graph, storage, temporary, count_inputs=not is_branch)
        modules: dict[Any, str] = {}
        costs = []
        for node in storage.order:
            figures = conditionals.get(node) or self._figures(node, storage)
            constants = tuple(str(each.target) for each in node.all_input_nodes if each.target in self.constants)
            elements, size = _constants_sum(constants, self.constants)
            origins = provenance_of(node)
            if origins not in modules:
                modules[origins] = _module(origin.module for origin in origins.origins) if origins else ""
            costs.append(
                NodeCost(
                    graph=name,
                    name=name_of(node),
                    operator=operator_name(node.target),
                    module=modules[origins],
                    constants=constants,
                    figures=replace(
                        figures, parameters=elements, parameter_bytes=size, peak_activation_bytes=alive[node]
                    ),
                )
            )
        return costs

    def _figures(self, node: fx.Node, storage: Storage) -> Figures:
        if storage.is_view(node):
            return Figures()
        work = work_of(node)
        if work is None:
            self.unknown.add(operator_name(node.target))
            work = Work()
        read, written = storage.traffic(node)
        return Figures(flops=work.flops, macs=work.macs, bytes_read=read, bytes_written=written)

    def _conditional(self, found: Conditional) -> Figures:
        both = [self._branch(name) for name in found.branches]
        return Figures(
            **{field.name: larger(getattr(figures, field.name) for figures in both) for field in fields(Figures)}
        )

    def _branch(self, name: str) -> Figures:
        if name not in self.branches:
            nodes = self.graph(name, self.program.branches[name], is_branch=True)
            self.branches[name] = _sum(nodes, self.constants)
        return self.branches[name]


def _sum(nodes: Sequence[NodeCost], table: Mapping[str, tuple[int, int]]) -> Figures:
    elements, size = _constants_sum({name for node in nodes for name in node.constants}, table)
    return Figures(
        flops=total(node.figures.flops for node in nodes),
        macs=total(node.figures.macs for node in nodes),
        bytes_read=total(node.figures.bytes_read for node in nodes),
        bytes_written=total(node.figures.bytes_written for node in nodes),
        parameters=elements,
        parameter_bytes=size,
        peak_activation_bytes=larger(node.figures.peak_activation_bytes for node in nodes),
    )


def _constants_sum(names: Iterable[str], table: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    found = [table[name] for name in names]
    return sum(elements for elements, _ in found), sum(size for _, size in found)


def _module(paths: Iterable[str]) -> str:
    """Return the innermost of `paths` if the others contain it, else what all of them share."""
    unique = sorted(set(paths), key=len)
    innermost = unique[-1] if unique else ""
    if all(path == innermost or not path or innermost.startswith(f"{path}.") for path in unique):
        return innermost
    shared = []
    for parts in zip(*(path.split(".") for path in unique if path), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
