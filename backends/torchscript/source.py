"""TorchScript source of a Program: one `forward` whose sizes stay expressions, so that any batch size runs.

    def forward(self, x: Tensor):
      x_size = x.size(0)
      conv1 = torch.ops.aten.conv2d(input=x, weight=self.conv1_weight, bias=self.conv1_bias, stride=[2, 2])
      return conv1

Overloads are chosen by TorchScript from the names and types of the arguments; names are always given. Buffers that a
run updates are read through a copy, as everywhere in burnish: what was read before the write stays as it was.

Cases not handled: what `operators.refusal` refuses; the caller asks it first.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.backends.torchscript.fused import fused_expression, has_expression
from burnish.backends.torchscript.layout import Layout
from burnish.backends.torchscript.literals import UnwritableError, literal
from burnish.backends.torchscript.operators import METHODS, SIZE_OPERATORS, method_of, size_expression
from burnish.compiler.conditional import Conditional, conditional
from burnish.compiler.errors import BackendError
from burnish.compiler.graphs import name_of, output_of, placeholders
from burnish.compiler.operators import is_mutating, operator_name, schema_of
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of

__all__ = ["Source", "write_source"]

# Names that the source itself uses, or that TorchScript reserves.
_RESERVED = frozenset(keyword.kwlist) | {
    *("self", "torch", "math", "inf", "nan", "int", "float", "bool", "complex", "str", "max", "min", "abs", "round"),
    *("len", "list", "List", "Optional", "Tensor", "Tuple", "Dict", "print", "range", "number", "forward", "training"),
}
_ILLEGAL = re.compile(r"\W+", re.ASCII)
_READ_NUMBER = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
# Hints to the shape analysis of torch.export, without any effect at run time.
_HINTS = (torch.ops.aten.sym_constrain_range.default, torch.ops.aten.sym_constrain_range_for_size.default)


@dataclass(frozen=True, slots=True)
class Source:
    """What `write_source` returns.

    Attributes:
        text: the `def forward` statement, and the methods that it calls.
        attributes: name of the module attribute of every constant in use, by the constant's name.
        inputs: names of the Program's inputs, in the order of the parameters.
        outputs: names of the outputs, in the order in which they are returned.
        lines: display name and module path of the node on each 1-based line that calls an operator.
    """

    text: str
    attributes: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lines: Mapping[int, tuple[str, str]]


def write_source(program: Program, layout: Layout) -> Source:
    """Write the source of `program`, whose results lie in memory as `layout` says.

    Raises:
        BackendError: an argument has no form in TorchScript; names the node.
    """
    return _Writer(program, layout).write()


class _Writer:
    def __init__(self, program: Program, layout: Layout) -> None:
        self.program = program
        self.layout = layout
        self.mutable = program.mutable_constants()
        self.names = _Names(_RESERVED)
        self.attributes: dict[str, str] = {}
        self.attribute_names = _Names(_RESERVED | {name for name, _ in METHODS.values()})
        self.methods: dict[str, str] = {}
        self.lines: list[str] = []
        self.places: dict[int, tuple[str, str]] = {}

    def write(self) -> Source:
        types = {
            str(node.target): _type_name(node.meta.get("val"))
            for graph in reversed(self.program.graphs.values())
            for node in placeholders(graph)
        }
        inputs = tuple(name for name in self.program.signature.input_names if name in types)
        values = {name: self.names.take(name) for name in inputs}
        parameters = "".join(f", {values[name]}: {types[name]}" for name in inputs)
        self.lines.append(f"def forward(self{parameters}):")
        for graph in self.program.graphs.values():
            known = {node: values[str(node.target)] for node in placeholders(graph)}
            results = self._body(graph, known, "  ")
            # A result of its own: who writes to it must not reach a weight, or the caller's input.
            refer = self._reader(output_of(graph), known)
            own = {name: f"{known[node]}.clone()" if _is_alias(node) else refer(node) for name, node in results.items()}
            values.update(own)
        outputs = self.program.signature.output_names
        result = ", ".join(values[name] for name in outputs)
        self.lines.append(f"  return {result if len(outputs) == 1 else f'({result})' if outputs else 'None'}")
        text = "\n".join([*self.lines, *self.methods.values(), ""])
        return Source(text, self.attributes, inputs, outputs, self.places)

    def _body(self, graph: fx.Graph, known: dict[fx.Node, str], indent: str) -> Any:
        """Write the operators of `graph`, putting the expression of each into `known`; return its outputs."""
        for node in graph.nodes:
            if node.op == "get_attr":
                self._constant(node, known, indent)
            elif node.op == "call_function":
                try:
                    self._call(node, known, indent)
                except UnwritableError as error:
                    raise BackendError(f"{name_of(node)} ({operator_name(node.target)}): {error}") from error
        return output_of(graph).args[0]

    def _constant(self, node: fx.Node, known: dict[fx.Node, str], indent: str) -> None:
        name = str(node.target)
        if name in self.program.branches:
            return
        if name not in self.attributes:
            self.attributes[name] = self.attribute_names.take(name)
        known[node] = f"self.{self.attributes[name]}"
        if name in self.mutable and any(not _writes(user, node) for user in node.users):
            self._assign(node, f"{known[node]}.clone()", known, indent)

    def _call(self, node: fx.Node, known: dict[fx.Node, str], indent: str) -> None:
        target: Any = node.target
        refer = self._reader(node, known)
        choice = conditional(node)
        if choice is not None:
            self._condition(node, choice, known, indent)
        elif target in _HINTS:
            return
        elif target in SIZE_OPERATORS:
            operands = [literal(value, "", refer) for value in node.args]
            self._assign(node, SIZE_OPERATORS[target].format(*operands), known, indent)
        elif target in _READ_NUMBER:
            kind = _type_name(node.meta.get("val"))
            self._assign(node, f"{kind}({literal(node.args[0], '', refer)})", known, indent)
        elif (method := method_of(target)) is not None:
            name, definition = method
            self.methods[name] = definition
            self._assign(node, f"self.{name}({', '.join(self._arguments(node, refer))})", known, indent)
        elif has_expression(node):
            self._assign(node, fused_expression(node, refer), known, indent)
        elif isinstance(target, OpOverload):
            text = f"torch.ops.{target.namespace}.{target._opname}({', '.join(self._arguments(node, refer))})"
            if target._schema.returns:
                self._assign(node, text, known, indent)
            else:
                self._line(node, text, indent)
        elif operator_name(target) == "getitem":
            container, index = node.args
            self._assign(node, f"{literal(container, '', refer)}[{literal(index, '', refer)}]", known, indent)
        else:
            given = node.args[0] if operator_name(target) == "sym.sum" else node.args
            operands = [literal(value, "", refer) for value in given]  # type: ignore[union-attr]
            expression = size_expression(operator_name(target), operands, node.meta.get("val"))
            assert expression is not None, f"{node.target} passed the check"
            self._assign(node, expression, known, indent)

    def _arguments(self, node: fx.Node, refer: Callable[[fx.Node], str]) -> Iterator[str]:
        target: Any = node.target
        schema = schema_of(target)
        assert schema is not None
        kinds = {each.name: str(each.type) for each in target._schema.arguments}
        given = {**dict(zip(schema.names, node.args, strict=False)), **node.kwargs}
        for name, value in given.items():
            if (
                name in schema.defaults
                and value == schema.defaults[name]
                and type(value) is type(schema.defaults[name])
            ):
                continue
            if (
                is_mutating(target)
                and name == schema.names[0]
                and isinstance(value, fx.Node)
                and value.op == "get_attr"
            ):
                # The write goes to the buffer itself, not to the copy that reads see.
                yield f"{name}=self.{self.attributes[str(value.target)]}"
                continue
            yield f"{name}={literal(value, kinds[name], refer)}"

    def _condition(self, node: fx.Node, choice: Conditional, known: dict[fx.Node, str], indent: str) -> None:
        result = self.names.take(name_of(node))
        refer = self._reader(node, known)
        test = f"bool({literal(choice.predicate, '', refer)})"
        for head, branch in zip((f"if {test}:", "else:"), choice.branches, strict=True):
            graph = self.program.branches[branch]
            self.lines.append(f"{indent}{head}")
            inner = {
                each: literal(value, "", refer)
                for each, value in zip(placeholders(graph), choice.operands, strict=True)
            }
            values = self._body(graph, inner, indent + "  ")
            parts = [literal(value, "", self._reader(output_of(graph), inner)) for value in values]
            self._line(node, f"{result} = ({', '.join(parts)},)", indent + "  ")
        known[node] = result

    def _reader(self, node: fx.Node, known: Mapping[fx.Node, str]) -> Callable[[fx.Node], str]:
        """Return the function that gives the expressions of what `node` reads."""
        return lambda each: known[each] if self.layout.is_read_as_is(each, node) else f"{known[each]}.contiguous()"

    def _assign(self, node: fx.Node, text: str, known: dict[fx.Node, str], indent: str) -> None:
        known[node] = self.names.take(name_of(node))
        self._line(node, f"{known[node]} = {text}", indent)

    def _line(self, node: fx.Node, text: str, indent: str) -> None:
        self.lines.append(indent + text)
        provenance = provenance_of(node)
        module = ", ".join(dict.fromkeys(each.module for each in provenance.origins)) if provenance else ""
        self.places[len(self.lines)] = (name_of(node), module)


class _Names:
    """Identifiers made of display names, each once."""

    def __init__(self, reserved: frozenset[str]) -> None:
        self._taken = set(reserved)
        self._next: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        # A leading underscore could meet Python's own names, a leading digit is no identifier.
        base = _ILLEGAL.sub("_", wanted).lstrip("_") or "value"
        base = f"v{base}" if base[0].isdigit() else base
        name, ordinal = base, self._next.get(base, 0)
        while name in self._taken:
            ordinal += 1
            name = f"{base}_{ordinal}"
        self._next[base] = ordinal
        self._taken.add(name)
        return name


def _is_alias(node: fx.Node) -> bool:
    """Tell whether `node` is an input or a constant, or a view of one."""
    while node.op == "call_function":
        target: Any = node.target
        if operator_name(target) != "getitem" and not (
            isinstance(target, OpOverload) and target._schema.returns and target._schema.returns[0].alias_info
        ):
            return False
        node = node.all_input_nodes[0]
    return isinstance(node.meta.get("val"), torch.Tensor)


def _writes(node: fx.Node, constant: fx.Node) -> bool:
    """Tell whether all that `node` does with `constant` is to write to it."""
    target: Any = node.target
    return (
        constant.op == "get_attr" and is_mutating(target) and node.args[0] is constant and constant not in node.args[1:]
    )


def _type_name(value: Any) -> str:
    if isinstance(value, (bool, torch.SymBool)):
        return "bool"
    if isinstance(value, (int, torch.SymInt)):
        return "int"
    return "float" if isinstance(value, (float, torch.SymFloat)) else "Tensor"
