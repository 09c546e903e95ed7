"""The semantic difference of two Programs: nodes, inputs, outputs and constants by their stable names.

Order, provenance, samples, notes and the passes that ran do not count, and symbols are named as in the text form.
A node that computes the same under another name is one removed and one added.

Cases not handled: the bounds of dynamic sizes; which of two names of a tied constant is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import calls, name_of, output_of, placeholders
from burnish.compiler.lexer import quoted_name
from burnish.compiler.operators import arguments, operator_name, schema_of
from burnish.compiler.printer import print_node, symbol_names
from burnish.compiler.program import Program
from burnish.compiler.types_text import format_type
from burnish.compiler.values_text import format_structure, format_value

__all__ = ["Change", "Difference", "diff_programs"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs.

    Attributes:
        what: "graph", "input", "output", "node", "constant" or "signature".
        kind: "added", "removed" or "changed", from the first Program to the second.
        graph: name of the graph; "" for what belongs to the Program.
        name: stable name of the node, input, output or constant.
        detail: the line of text of what was added or removed; "aspect: old -> new" for each aspect that changed.
    """

    what: str
    kind: str
    graph: str
    name: str
    detail: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes, graph by graph in the order of the text; empty when the Programs are equal."""

    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        names = Change.__dataclass_fields__
        return {
            "equal": not self.changes,
            "changes": [
                {name: getattr(change, name) for name in names if name != "detail"} | {"detail": list(change.detail)}
                for change in self.changes
            ],
        }


def diff_programs(first: Program, second: Program, *, values: bool = True) -> Difference:
    """Compare two Programs.

    Args:
        first: the Program to start from.
        second: the Program to get to.
        values: compare the values of constants too; without, their types alone (a text holds no values).
    """
    sides = (_Side(first), _Side(second))
    changes = [
        *_signature(sides),
        *(change for name in _union(sides[0].graphs, sides[1].graphs) for change in _graph(sides, name)),
        *_constants(first, second, values),
    ]
    return Difference(tuple(changes))


class _Side:
    """One of the two Programs, with the names of its symbols."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.names = symbol_names(program)
        self.graphs: dict[str, fx.Graph] = dict(program.all_graphs())

    def type_of(self, node: fx.Node) -> str:
        return format_type(node.meta["val"], self.names) if "val" in node.meta else "untyped"

    def nodes(self, graph: str) -> dict[str, fx.Node]:
        return {name_of(node): node for node in calls(self.graphs[graph])}

    def inputs(self, graph: str) -> dict[str, dict[str, str]]:
        return {str(node.target): {"type": self.type_of(node)} for node in placeholders(self.graphs[graph])}

    def outputs(self, graph: str) -> dict[str, dict[str, str]]:
        result: Any = output_of(self.graphs[graph]).args[0]
        # A branch has a tuple of outputs, or one; a stage a dict.
        named = (
            result if isinstance(result, dict) else dict(enumerate(result if isinstance(result, tuple) else [result]))
        )
        return {str(name): {"value": format_value(value, _refer)} for name, value in named.items()}

    def aspects(self, node: fx.Node) -> dict[str, str]:
        """Return what makes a node what it is, as text by aspect."""
        target: Any = node.target
        given, schema = arguments(node), schema_of(target)
        names = [name for name in schema.names if name in given] if schema is not None else list(given)
        return {
            "operator": operator_name(target),
            **{f"argument {name}": format_value(_plain(given[name]), _refer) for name in names},
            "type": self.type_of(node),
        }


def _signature(sides: tuple[_Side, _Side]) -> Iterator[Change]:
    old, new = (
        {
            "inputs": format_structure(side.program.signature.inputs),
            "outputs": format_structure(side.program.signature.outputs),
            "parameters": ", ".join(side.program.signature.parameters),
            "stages": ", ".join(side.program.graphs),
        }
        for side in sides
    )
    if old != new:
        yield Change("signature", "changed", "", "", _aspects_that_differ(old, new))


def _graph(sides: tuple[_Side, _Side], graph: str) -> Iterator[Change]:
    old, new = sides
    if graph not in old.graphs or graph not in new.graphs:
        side, kind = (old, "removed") if graph in old.graphs else (new, "added")
        yield Change("graph", kind, graph, graph, (f"{len(side.nodes(graph))} nodes",))
        return
    yield from _compare("input", graph, old.inputs(graph), new.inputs(graph), _last, _last, dict, dict)
    yield from _compare(
        "node",
        graph,
        old.nodes(graph),
        new.nodes(graph),
        lambda node: print_node(node, old.names),
        lambda node: print_node(node, new.names),
        old.aspects,
        new.aspects,
    )
    yield from _compare("output", graph, old.outputs(graph), new.outputs(graph), _last, _last, dict, dict)


def _constants(first: Program, second: Program, values: bool) -> Iterator[Change]:
    old, new = first.used_constants(), second.used_constants()
    yield from _compare("constant", "", old, new, format_type, format_type, _constant, _constant)
    for name in old if values else ():
        if name in new and _constant(old[name]) == _constant(new[name]) and not _equal(old[name], new[name]):
            yield Change("constant", "changed", "", name, (f"value: {_how_far(old[name], new[name])}",))


def _compare(
    what: str,
    graph: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    show_old: Callable[[Any], str],
    show_new: Callable[[Any], str],
    aspects_of_old: Callable[[Any], dict[str, str]],
    aspects_of_new: Callable[[Any], dict[str, str]],
) -> Iterator[Change]:
    """Compare two tables by name: what is in one alone, and in which aspects the others differ."""
    for name in _union(old, new):
        if name not in new:
            yield Change(what, "removed", graph, name, (show_old(old[name]),))
        elif name not in old:
            yield Change(what, "added", graph, name, (show_new(new[name]),))
        else:
            detail = _aspects_that_differ(aspects_of_old(old[name]), aspects_of_new(new[name]))
            if detail:
                yield Change(what, "changed", graph, name, detail)


def _aspects_that_differ(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    """Return "aspect: old -> new" for each that differs; of another operator's arguments all are listed."""
    return tuple(
        f"{name}: {old.get(name, '(none)')} -> {new.get(name, '(none)')}"
        for name in _union(old, new)
        if old.get(name) != new.get(name)
    )


def _union(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names in `old`, then those in `new` alone, each side in its own order."""
    return list(dict.fromkeys([*old, *new]))


def _last(aspects: Mapping[str, str]) -> str:
    return list(aspects.values())[-1]


def _refer(node: fx.Node) -> str:
    if node.op == "get_attr":
        return f"{'@' if 'val' in node.meta else '&'}{quoted_name(str(node.target))}"
    return f"%{quoted_name(str(node.target) if node.op == 'placeholder' else name_of(node))}"


def _plain(value: Any) -> Any:
    """Return an argument in the form that the text has: an operator takes lists and tuples alike."""
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _constant(value: torch.Tensor) -> dict[str, str]:
    return {"type": format_type(value)}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or torch.equal(_bits(a), _bits(b))


def _how_far(a: torch.Tensor, b: torch.Tensor) -> str:
    different = int((_bits(a) != _bits(b)).sum())
    wide = torch.complex128 if a.is_complex() else torch.float64
    largest = float((a.detach().to(wide) - b.detach().to(wide)).abs().max())
    total = _bits(a).numel()
    return f"{different} of {total} elements differ, by at most {largest:.3g}"


def _bits(value: torch.Tensor) -> torch.Tensor:
    """Return floats as the integers of the same bits: NaN is itself, and -0.0 is not 0.0."""
    plain = torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach()
    if not plain.is_floating_point():
        return plain
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
    return plain.contiguous().view(whole)
