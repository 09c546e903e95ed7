"""Print a Program as text; docs/text-form.md describes the form.

The text is a pure function of structure: names come from `node.meta["name"]`, the order from `graphs.node_order`, the
symbols are renamed by first appearance. It holds no provenance, strides, devices of tensors, samples or notes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from burnish.compiler.expressions import SymbolNames, is_unbacked
from burnish.compiler.graphs import name_of, node_order, output_of, placeholders
from burnish.compiler.lexer import quoted_name
from burnish.compiler.operators import Operator, operator_name, schema_of
from burnish.compiler.program import Program
from burnish.compiler.structure import Container, Leaf, Structure
from burnish.compiler.types_text import dtype_name, format_type
from burnish.compiler.values_text import format_key, format_structure, format_value

__all__ = ["SymbolNames", "print_node", "print_program", "symbol_names"]

VERSION = "burnish 1"
# A bound from here up is PyTorch's way to say "unbounded".
_UNBOUNDED = 2**62


def print_program(program: Program) -> str:
    """Return the text form of `program`, with a newline at the end."""
    return _Printer(program).text()


def print_node(node: fx.Node, names: SymbolNames | None = None) -> str:
    """Return the line of one operator node, without indentation.

    Args:
        names: from `symbol_names(program)`; by default the symbols are named within this line alone.
    """
    operator: Any = node.target
    arguments = _arguments(_plan(operator), node)
    value = node.meta.get("val", _NO_VALUE)
    # A branch-taking operator whose results nobody typed, or a node that a pass left untyped, prints without a type.
    typed = "" if value is _NO_VALUE else f" : {format_type(value, names)}"
    return f"%{quoted_name(name_of(node))} = {operator_name(operator)}({arguments}){typed}"


def symbol_names(program: Program) -> SymbolNames:
    """Return the names that the text of `program` gives to its symbols."""
    printer = _Printer(program)
    printer.text()
    return printer.names


def default_structures(
    graphs: list[tuple[list[str], list[str]]],
) -> tuple[Structure, Structure]:
    """Return the structures that need no line: all inputs positional, the last graph's outputs bare or as a tuple.

    Args:
        graphs: names of the inputs and of the outputs of each graph, in order.
    """
    inputs: list[Structure] = []
    known: set[str] = set()
    for arguments, results in graphs:
        inputs += [Leaf(name) for name in arguments if name not in known]
        known.update(arguments, results)
    last = [Leaf(name) for name in graphs[-1][1]]
    args = Container("tuple", (), tuple(inputs))
    outputs = last[0] if len(last) == 1 else Container("tuple", (), tuple(last))
    return Container("tuple", (), (args, Container("dict", (), ()))), outputs


def default_parameters(inputs: Structure) -> tuple[str, ...]:
    """Return the parameter names that need no line: those of the positional inputs, where these are single values."""
    args = inputs.children[0] if isinstance(inputs, Container) and inputs.children else None
    if not isinstance(args, Container) or not all(isinstance(child, Leaf) for child in args.children):
        return ()
    return tuple(child.name for child in args.children if isinstance(child, Leaf))


def default_outputs(count: int) -> list[str]:
    """Return the output names that `return` leaves out."""
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


class _Printer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.names = SymbolNames()
        self.constants: dict[str, fx.Node] = {}

    def text(self) -> str:
        # The head names symbols and constants in the order in which the body uses them.
        body = [
            *(line for name, graph in self.program.graphs.items() for line in self._graph("graph", name, graph)),
            *(line for name, graph in self.program.branches.items() for line in self._graph("branch", name, graph)),
        ]
        return "\n".join([*self._head(), *body, ""])

    def _head(self) -> list[str]:
        program, signature = self.program, self.program.signature
        lines = [f"# {VERSION}"]
        if program.history:
            lines.append(f"# passes: {','.join(program.history)}")
        if program.facts:
            lines.append(f"# facts: {','.join(sorted(str(fact) for fact in program.facts))}")
        lines += self._dims()
        lines += [f"where {condition.text(self.names)}" for condition in program.conditions]
        graphs = [
            ([str(node.target) for node in placeholders(graph)], list(_outputs(graph)))
            for graph in program.graphs.values()
        ]
        inputs, outputs = default_structures(graphs)
        if signature.inputs != inputs:
            lines.append(f"inputs {format_structure(signature.inputs)}")
        if signature.parameters != default_parameters(signature.inputs):
            lines.append(f"parameters ({', '.join(signature.parameters)})")
        if signature.outputs != outputs:
            lines.append(f"outputs {format_structure(signature.outputs)}")
        lines += [self._constant(name, node) for name, node in self.constants.items()]
        return lines

    def _dims(self) -> list[str]:
        environment = self.program.fake_mode.shape_env
        lines = []
        for symbol, name in self.names.names.items() if environment is not None else ():
            bounds = symbol_bounds(environment, symbol)
            if bounds != (0, None):
                low, high = bounds
                lines.append(f"dims {name}: {'-inf' if low is None else low}..{'inf' if high is None else high}")
        return lines

    def _constant(self, name: str, node: fx.Node) -> str:
        tensor = self.program.constants.get(name, node.meta.get("val"))
        if not isinstance(tensor, torch.Tensor):
            return f"constant @{quoted_name(name)}: none"
        line = f"constant @{quoted_name(name)}: {dtype_name(tensor.dtype)}[{', '.join(map(str, tensor.shape))}]"
        known = name in self.program.constants and tensor.device.type != "meta"
        if tensor.dim() == 0 and known and not tensor.is_quantized:
            line += f" = {format_value(tensor.item(), str)}"
        return line

    def _graph(self, kind: str, name: str, graph: fx.Graph) -> list[str]:
        inputs = [
            f"%{quoted_name(str(node.target))}: {format_type(node.meta.get('val'), self.names, is_input=True)}"
            for node in placeholders(graph)
        ]
        lines = [f"{kind} {format_key(name)}({', '.join(inputs)}) {{"]
        for node in node_order(graph):
            self._note_constants(node)
            lines.append(f"  {print_node(node, self.names)}")
        self._note_constants(output_of(graph))
        lines.append(f"  return {_format_return(graph)}".rstrip())
        lines.append("}")
        return lines

    def _note_constants(self, node: fx.Node) -> None:
        for each in node.all_input_nodes:
            if each.op == "get_attr" and each.target not in self.program.branches:
                self.constants.setdefault(str(each.target), each)


def symbol_bounds(environment: ShapeEnv | None, symbol: sympy.Symbol) -> tuple[int | None, int | None]:
    """Return the least and greatest value of `symbol`; None for unbounded. The default is (0, None)."""
    known = environment.var_to_range.get(symbol) if environment is not None else None
    if known is None:
        return 0, None
    low = int(known.lower) if known.lower.is_Integer and known.lower > -_UNBOUNDED else None
    high = int(known.upper) if known.upper.is_Integer and known.upper < _UNBOUNDED else None
    # A backed size is at least 0 whatever the bound says, and PyTorch starts some at -inf.
    if low is None and not is_unbacked(symbol):
        low = 0
    return low, high


_NO_VALUE = object()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What printing needs to know of an operator.

    Attributes:
        names: schema names in order; empty without a schema.
        defaults: default by schema name.
        leading: how many arguments, from the first on, hold tensors and are printed by position.
        has_schema: whether arguments are printed by name at all.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    leading: int
    has_schema: bool


@functools.cache
def _plan(target: Operator) -> _Plan:
    schema = schema_of(target)
    if schema is None:
        return _Plan((), {}, 0, False)
    leading = 0
    for name in schema.names[: schema.positional]:
        if name not in schema.tensors:
            break
        leading += 1
    return _Plan(schema.names, dict(schema.defaults), leading, True)


def _arguments(plan: _Plan, node: fx.Node) -> str:
    if not plan.has_schema:
        pieces = [format_value(value, _refer) for value in node.args]
        return ", ".join([*pieces, *(f"{name}={format_value(value, _refer)}" for name, value in node.kwargs.items())])
    pieces = []
    by_position = True
    for index, name in enumerate(plan.names):
        if index < len(node.args):
            value = node.args[index]
        elif name in node.kwargs:
            value = node.kwargs[name]
        else:
            by_position = False
            continue
        if name in plan.defaults and _same(value, plan.defaults[name]):
            by_position = False
            continue
        # An operator with a schema takes lists and tuples alike.
        text = format_value(list(value) if isinstance(value, tuple) else value, _refer)
        by_position = by_position and index < plan.leading
        pieces.append(text if by_position else f"{name}={text}")
    return ", ".join(pieces)


def _same(value: Any, default: Any) -> bool:
    """Tell whether `value` is the default, of the same type: 1, 1.0 and True differ."""
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return len(value) == len(default) and all(_same(*pair) for pair in zip(value, default, strict=True))
    return type(value) is type(default) and bool(value == default)


def _refer(node: fx.Node) -> str:
    if node.op == "get_attr":
        # A branch has no type of its own; a constant always has.
        sigil = "@" if "val" in node.meta else "&"
        return f"{sigil}{quoted_name(str(node.target))}"
    return f"%{quoted_name(str(node.target) if node.op == 'placeholder' else name_of(node))}"


def _outputs(graph: fx.Graph) -> dict[str, Any]:
    result: Any = output_of(graph).args[0]
    return result if isinstance(result, dict) else {}


def _format_return(graph: fx.Graph) -> str:
    result: Any = output_of(graph).args[0]
    if isinstance(result, (tuple, list)):
        return ", ".join(format_value(value, _refer) for value in result)
    if not isinstance(result, dict):
        return f"bare {format_value(result, _refer)}"
    values = [_refer(node) for node in result.values()]
    if list(result) == default_outputs(len(values)):
        return ", ".join(values)
    return ", ".join(f"{format_key(name)}={value}" for name, value in zip(result, values, strict=True))
