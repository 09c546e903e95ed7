"""Which operators, inputs and outputs of a Program have one type between them, and which values they share.

A unit is an operator with its results; an operand of a `cond` together with the inputs of both branches; a result of a
`cond` with what the branches return; an input or output, with the later stage's input of its name. Units that gain by
half precision, and those that must stay float32, are pinned.

1. Constants have no unit: readers alone decide how they are stored.
2. Layers that read what was dequantized are integer kernels: their floats stay float32.
3. A value that half precision cannot hold pins what makes and reads it. An attention whose mask it is, it does not pin:
   the mask is cut off at the type's finite range.
4. A cast that the Program has already pins what it gives, or reads, to half precision.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from burnish.compiler.conditional import Conditional, conditional
from burnish.compiler.graphs import calls, name_of, output_of, placeholders
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.program import Program
from burnish.passes.precision.kinds import is_cast, island_reason, kind_of, literals, mask_of
from burnish.passes.precision.placement import Edge
from burnish.passes.precision.ranges import Key, Limits

__all__ = ["Units", "operand_key", "returned"]


@dataclass
class Units:
    """The units of a Program.

    Args:
        program: the Program.
        dtype: the half precision.
        limits: what it can hold.
        troubles: values that it cannot hold, and why.
        kept: operators that are to stay float32.
        converts: the Program's inputs and outputs are to be in half precision.

    Attributes:
        values: the tensors of float32.
        reads: by operator: those that it computes with.
        reasons: why an operator is pinned to float32.
        wanted: the operators that gain by half precision, those that are pinned to float32 left out.
    """

    program: Program
    dtype: torch.dtype
    limits: Limits
    troubles: Mapping[fx.Node, str]
    kept: Collection[Key]
    converts: bool
    values: dict[fx.Node, None] = field(default_factory=dict)
    reads: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    wanted: list[fx.Node] = field(default_factory=list)
    _numbers: dict[Hashable, int] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)
    _pins: list[bool | None] = field(default_factory=list)
    _readers: dict[Hashable, list[Hashable]] = field(default_factory=dict)
    _coded: set[fx.Node] = field(default_factory=set)
    _inputs: dict[fx.Node, Hashable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mutable = self.program.mutable_constants()
        for graph in self.program.graphs.values():
            self._inputs.update((node, ("border", str(node.target))) for node in placeholders(graph))
        for label, graph in self.program.branches.items():
            self._inputs.update((node, (label, "in", index)) for index, node in enumerate(placeholders(graph)))
        for _, graph in self.program.all_graphs():
            for node in graph.nodes:
                if _dtype(node) is torch.float32:
                    self.values[node] = None
                if node.op == "get_attr" and node.target in mutable:
                    self._pin(node, False)
        for graph in self.program.graphs.values():
            for node in placeholders(graph):
                if node in self.values:
                    self._pin(
                        self.key(node), self._border(node, str(node.target) in self.program.signature.input_names)
                    )
        for label, graph in self.program.all_graphs():
            for node in calls(graph):
                self._add(label, node)
            self._end(label, graph)

    def key(self, value: fx.Node) -> Hashable:
        """Return the key of the unit that makes a value: an operator, or a name of an input or a result of branches."""
        if value in self._inputs:
            return self._inputs[value]
        source = value.args[0] if value.target is operator.getitem else None
        if not isinstance(source, fx.Node):
            return value
        choice = conditional(source)
        return self.key(source) if choice is None else (choice.branches[0], str(value.args[1]))

    # -- asking -------------------------------------------------------------------------------------------------

    def pins(self) -> list[bool | None]:
        """Return the pins; those of joined units are at the one that stands for them."""
        found: list[bool | None] = [None] * len(self._pins)
        for unit, pin in enumerate(self._pins):
            root = self._root(unit)
            # Float32 wins: it is never wrong.
            if pin is not None and found[root] is not False:
                found[root] = pin
        return found

    def edges(self) -> Iterator[Edge]:
        """Yield the values, each with the units that make and read it, in the order of the graphs."""
        for value, readers in self._readers.items():
            known = readers if isinstance(value, str) else [self.key(value), *readers]  # type: ignore[arg-type]
            units = tuple(dict.fromkeys(self._root(self._number(each)) for each in known))
            yield Edge(units, self._elements(value))

    def is_low(self, placement: list[bool], key: Hashable) -> bool:
        """Tell whether a unit, by its key, is in half precision."""
        return key in self._numbers and placement[self._root(self._numbers[key])]

    def constant_readers(self) -> Iterator[tuple[str, list[Hashable]]]:
        """Yield constants by name with the keys of the units that read them."""
        for value, readers in self._readers.items():
            if isinstance(value, str):
                yield value, readers

    # -- finding ------------------------------------------------------------------------------------------------

    def _add(self, label: str, node: fx.Node) -> None:
        """Add an operator: its pin, and what it reads."""
        choice = conditional(node)
        if choice is not None:
            self._choose(choice)
            return
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node):
            if node in self.values:
                self._pin(self.key(node), False if node in self.troubles else None)
            if source in self._coded:
                self._coded.add(node)
            return
        kind = kind_of(node)
        computes = kind != "like" and not operator_name(node.target).startswith("aten.sym_")
        read = self.reads[node] = [each for each in node.all_input_nodes if each in self.values] if computes else []
        if not read and torch.float32 not in _dtypes(node):
            return
        for each in node.all_input_nodes:
            if isinstance(each.meta.get("val"), (tuple, list)):
                self._join(node, self.key(each))
        self._mark(node, read, kind)
        pin, reason = self._pin_of(label, node, read, kind)
        self._pin(node, pin)
        if reason:
            self.reasons[node] = reason
        elif kind == "low" and pin:
            self.wanted.append(node)
        for each in read:
            self._read(each, node)

    def _choose(self, choice: Conditional) -> None:
        """Join operands with the inputs of both branches, and the results of the branches."""
        first, second = (self.program.branches[name] for name in choice.branches)
        for index, operand in enumerate(choice.operands):
            if operand in self.values:
                key = operand_key(choice, index)
                for inside in (placeholders(first)[index], placeholders(second)[index]):
                    self._join(key, self.key(inside))
                    self._pin(key, False if inside in self.troubles else None)
                self._pin(key, False if operand in self.troubles else None)
                self._read(operand, key)
        for (name, _), _ in zip(returned(first), returned(second), strict=True):
            self._join((choice.branches[0], name), (choice.branches[1], name))

    def _end(self, label: str, graph: fx.Graph) -> None:
        """Add what a graph returns."""
        outputs = self.program.signature.output_names
        seen: dict[fx.Node, Hashable] = {}
        for name, value in returned(graph):
            if value not in self.values:
                continue
            if label in self.program.graphs:
                key: Hashable = ("border", name)
                self._pin(key, self._border(value, name in outputs))
            else:
                key = (label, name)
                self._pin(key, False if value in self.troubles else None)
                # One that is returned twice has one type.
                self._join(key, seen.setdefault(value, key))
            self._read(value, key)

    def _border(self, value: fx.Node, is_outside: bool) -> bool | None:
        if value in self.troubles:
            return False
        return self.converts if is_outside else None

    def _pin_of(self, label: str, node: fx.Node, read: list[fx.Node], kind: str) -> tuple[bool | None, str]:
        """Return the pin of an operator, and why where it is float32."""
        if is_cast(node):
            return self._pin_of_cast(node), ""
        if (label, name_of(node)) in self.kept:
            return False, "with it the drift would be above max_drift"
        if kind == "island":
            return False, island_reason(node) if read else ""
        if not read:
            # It makes its floats of integers or numbers.
            return False, ""
        kinds = {each for other in (*node.all_input_nodes, node) for each in _dtypes(other)}
        others = [each for each in kinds - {torch.float32} if each.is_floating_point or each.is_complex]
        if others:
            return False, f"it computes with {others[0]} too".replace("torch.", "")
        reason = self._number_reason(node) or self._range_reason(node, read) or _size_reason(node)
        if reason:
            return False, reason
        if kind == "low" and not self._coded.isdisjoint(read):
            return False, "it computes in integers"
        return True if kind == "low" else None, ""

    def _pin_of_cast(self, node: fx.Node) -> bool | None:
        source, result = _dtype(node.all_input_nodes[0]), _dtype(node)
        if self.dtype in (source, result):
            return node.all_input_nodes[0] not in self.troubles
        if torch.bool in (source, result) or source is result:
            return False if node in self.troubles else None
        return False

    def _number_reason(self, node: fx.Node) -> str:
        for number, compared in literals(node):
            size = abs(number)
            if compared and torch.tensor(number, dtype=self.dtype).item() != number == number:
                return f"it compares with {number:g}, which half precision rounds"
            if self.limits.finite < size < float("inf"):
                return f"its number {number:g} is beyond half precision"
            if 0 < size < self.limits.normal:
                return f"its number {number:g} loses digits in half precision"
        return ""

    def _range_reason(self, node: fx.Node, read: list[fx.Node]) -> str:
        mask, given = mask_of(node), arguments(node)
        # Next to what it is added to, a small bias loses nothing.
        biases = [given.get(name) for name in ("bias", "input_bias")]
        for each in read:
            trouble = self.troubles.get(each)
            if trouble and each is not mask and not (each in biases and "digits" in trouble):
                return f"%{name_of(each)} {trouble}"
        for each in (node, *node.users):
            if each in self.troubles and (each is node or each.target is operator.getitem):
                return f"%{name_of(each)} {self.troubles[each]}"
        return ""

    def _mark(self, node: fx.Node, read: list[fx.Node], kind: str) -> None:
        """Remember what is a dequantized value, perhaps rearranged."""
        dequantizes = operator_name(node.target).startswith("quantized_decomposed.dequantize")
        if dequantizes or (kind == "shape" and not self._coded.isdisjoint(read)):
            self._coded.add(node)

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _read(self, value: fx.Node, key: Hashable) -> None:
        # A constant is stored once for all graphs.
        constant = value.op == "get_attr" and self._pins_of(value) is None
        self._readers.setdefault(str(value.target) if constant else value, []).append(key)

    def _pins_of(self, key: Hashable) -> bool | None:
        return self._pins[self._numbers[key]] if key in self._numbers else None

    def _elements(self, value: Hashable) -> int:
        shape = self.program.constants[value].shape if isinstance(value, str) else value.meta["val"].shape  # type: ignore[attr-defined]
        total = 1
        for size in shape:
            # Most dynamic sizes are batches, which all values have.
            total *= size if isinstance(size, int) else 1
        return total

    def _number(self, key: Hashable) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self._parents)
            self._parents.append(len(self._parents))
            self._pins.append(None)
        return self._numbers[key]

    def _root(self, unit: int) -> int:
        while self._parents[unit] != unit:
            self._parents[unit] = self._parents[self._parents[unit]]
            unit = self._parents[unit]
        return unit

    def _join(self, a: Hashable, b: Hashable) -> None:
        self._parents[self._root(self._number(a))] = self._root(self._number(b))

    def _pin(self, key: Hashable, pin: bool | None) -> None:
        unit = self._number(key)
        if pin is not None and self._pins[unit] is not False:
            self._pins[unit] = pin


def operand_key(choice: Conditional, index: int) -> Hashable:
    """Return the key of the unit that an operand of a `cond` belongs to."""
    return choice.branches[0], "in", index


def returned(graph: fx.Graph) -> list[tuple[str, Any]]:
    """Return what a graph returns, by name, in a branch by number."""
    found: Any = output_of(graph).args[0]
    items = found.items() if isinstance(found, Mapping) else enumerate(found)
    return [(str(name), value) for name, value in items]


def _dtype(node: fx.Node) -> torch.dtype | None:
    found = node.meta.get("val")
    return found.dtype if isinstance(found, torch.Tensor) else None


def _dtypes(node: fx.Node) -> set[torch.dtype]:
    found = node.meta.get("val")
    several = found if isinstance(found, (tuple, list)) else (found,)
    return {each.dtype for each in several if isinstance(each, torch.Tensor)}


def _size_reason(node: fx.Node) -> str:
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.dynamic_output_shape not in target.tags:
        return ""
    known = set().union(*(_unbacked(each) for each in node.all_input_nodes))
    return "the size of its result depends on its values" if _unbacked(node) - known else ""


def _unbacked(node: fx.Node) -> set[Any]:
    value = node.meta.get("val")
    several = value if isinstance(value, (tuple, list)) else (value,)
    return set().union(*(free_unbacked_symbols(each) for each in several if each is not None))
