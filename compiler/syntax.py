"""The syntax of the text form: from text to statements, without looking at what operators mean.

One statement a line. The statements keep their line and columns, so that what reads them can point at the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy

from burnish.compiler.conditions import Condition, parse_condition
from burnish.compiler.errors import TextError
from burnish.compiler.lexer import Cursor, Token
from burnish.compiler.structure import Structure
from burnish.compiler.types_text import Type, parse_type
from burnish.compiler.values_text import parse_structure, parse_value

__all__ = ["Call", "ConstantText", "GraphText", "Input", "Place", "ProgramText", "Return", "read_syntax"]

HEADER = "# burnish "
VERSION = 1
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

SymbolReader = Callable[[str, Token], sympy.Expr]

_STATEMENTS = "'graph', 'branch', 'constant', 'inputs', 'outputs', 'parameters', 'dims' or 'where'"


@dataclass(frozen=True, slots=True)
class Place:
    """A line and column, 1-based, of a text."""

    source: str = field(repr=False)
    line: int
    column: int

    def error(self, message: str, column: int | None = None) -> TextError:
        """Return a TextError that shows this place."""
        return TextError(message, source=self.source, line=self.line, column=column or self.column)


@dataclass(frozen=True, slots=True)
class Call:
    """`%name = operator(arguments) : type`."""

    place: Place
    name: str
    operator: str
    operator_column: int
    positional: list[Any]
    keywords: dict[str, Any]
    type: Type | None


@dataclass(frozen=True, slots=True)
class Input:
    """`%name: type` in the head of a graph."""

    place: Place
    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Return:
    """`return a=%x, b=%y`; the names are None where they are left out, `bare` stands for one value, not a tuple."""

    place: Place
    names: list[str | None]
    values: list[Any]
    bare: bool


@dataclass(slots=True)
class GraphText:
    """A graph or a branch."""

    place: Place
    name: str
    inputs: list[Input]
    calls: list[Call] = field(default_factory=list)
    result: Return | None = None


@dataclass(frozen=True, slots=True)
class ConstantText:
    """`constant @name: type = value`; `value` is None where it is left out."""

    place: Place
    type: Type
    value: Any


@dataclass(slots=True)
class ProgramText:
    """All that a text says."""

    place: Place
    passes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    conditions: list[Condition] = field(default_factory=list)
    inputs: Structure | None = None
    outputs: Structure | None = None
    parameters: tuple[str, ...] | None = None
    constants: dict[str, ConstantText] = field(default_factory=dict)
    graphs: dict[str, GraphText] = field(default_factory=dict)
    branches: dict[str, GraphText] = field(default_factory=dict)


def read_syntax(text: str, symbol: SymbolReader, declare: Callable[[str, int | None, int | None], None]) -> ProgramText:
    """Read `text`.

    Args:
        symbol: gives the symbol for a name in a shape.
        declare: is told the bounds of a symbol by name, before `symbol` is asked for it; None for unbounded.

    Raises:
        TextError: the text is not a program.
    """
    return _Reader(text, symbol, declare).program()


class _Reader:
    def __init__(self, text: str, symbol: SymbolReader, declare: Callable[[str, int | None, int | None], None]) -> None:
        self.source = text
        self.symbol = symbol
        self.declare = declare
        self.declared: set[str] = set()
        self.lines = text.splitlines()
        self.result = ProgramText(Place(text, 1, 1))
        self.graph: GraphText | None = None

    def program(self) -> ProgramText:
        first = self.lines[0].strip() if self.lines else ""
        version = first.removeprefix(HEADER)
        if version == first:
            raise self.result.place.error(f"a program begins with the line '{HEADER}{VERSION}'")
        if version != str(VERSION):
            raise self.result.place.error(f"version {version[:20]!r} is not supported, only version {VERSION} is")
        for number, line in enumerate(self.lines[1:], start=2):
            stripped = line.strip()
            if stripped.startswith("#"):
                self._comment(stripped)
            elif stripped:
                self._line(Cursor(self.source, line, number))
        if self.graph is not None:
            raise self._last().error(f"graph {self.graph.name!r} is not closed: expected '}}'")
        if not self.result.graphs:
            raise self._last().error("the program has no graph")
        return self.result

    def _last(self) -> Place:
        return Place(self.source, max(1, len(self.lines)), 1)

    def _comment(self, line: str) -> None:
        for key in ("passes", "facts"):
            if line.startswith(f"# {key}: "):
                setattr(self.result, key, tuple(_split(line.removeprefix(f"# {key}: "))))

    def _line(self, cursor: Cursor) -> None:
        if self.graph is not None:
            self._inside(cursor, self.graph)
        else:
            self._outside(cursor)
        cursor.end()

    def _outside(self, cursor: Cursor) -> None:
        token = cursor.take(
            "word", "'graph', 'branch', 'constant', 'inputs', 'outputs', 'parameters', 'dims' or 'where'"
        )
        result = self.result
        if token.text in ("graph", "branch"):
            self._open(cursor, result.graphs if token.text == "graph" else result.branches)
        elif token.text == "constant":
            self._constant(cursor)
        elif token.text == "dims":
            self._dims(cursor)
        elif token.text == "where":
            if result.graphs or result.branches:
                cursor.fail("conditions are stated before the graphs", token.column)
            result.conditions.append(parse_condition(cursor, self.symbol))
        elif token.text in ("inputs", "outputs", "parameters"):
            if getattr(result, token.text) is not None:
                cursor.fail(f"{token.text!r} stands twice", token.column)
            read = self._parameters if token.text == "parameters" else parse_structure
            setattr(result, token.text, read(cursor))
        else:
            cursor.fail(f"unknown statement {token.text!r}", token.column)

    def _parameters(self, cursor: Cursor) -> tuple[str, ...]:
        cursor.expect("(")
        return tuple(cursor.items(")", lambda: cursor.take("word", "the name of a parameter").text))

    def _dims(self, cursor: Cursor) -> None:
        token = cursor.take("word", "the name of a dimension")
        if not _SYMBOL.fullmatch(token.text) or token.text in self.declared:
            cursor.fail(f"{token.text!r} cannot be declared, or is so twice", token.column)
        if self.result.graphs or self.result.branches:
            cursor.fail("dims are declared before the graphs", token.column)
        if self.result.conditions:
            cursor.fail("dims are declared before conditions", token.column)
        cursor.expect(":")
        low = self._bound(cursor)
        cursor.expect("..")
        high = self._bound(cursor)
        if high is not None and high < 0:
            cursor.fail("a size is not negative", token.column)
        if low is not None and high is not None and low > high:
            cursor.fail(f"the range {low}..{high} is empty", token.column)
        self.declared.add(token.text)
        self.declare(token.text, low, high)

    def _bound(self, cursor: Cursor) -> int | None:
        negative = cursor.accept("-")
        if cursor.accept("inf"):
            return None
        token = cursor.take("number", "a bound")
        value = cursor.integer(token)
        if value >= 2**62:
            cursor.fail("this bound is beyond 62 bits: write inf", token.column)
        return -value if negative else value

    def _constant(self, cursor: Cursor) -> None:
        column = cursor.token.column
        name = cursor.reference("@", "the name of a constant")
        if name in self.result.constants:
            cursor.fail(f"constant @{name} stands twice", column)
        cursor.expect(":")
        kind = parse_type(cursor, self.symbol)
        value = parse_value(cursor) if cursor.accept("=") else None
        self.result.constants[name] = ConstantText(Place(self.source, cursor.number, column), kind, value)

    def _open(self, cursor: Cursor, table: dict[str, GraphText]) -> None:
        token = cursor.next()
        if token.kind not in ("word", "string"):
            cursor.fail("expected the name of a graph", token.column)
        name = cursor.unquote(token)
        if name in self.result.graphs or name in self.result.branches:
            cursor.fail(f"graph {name!r} stands twice", token.column)
        cursor.expect("(")
        inputs = cursor.items(")", lambda: self._input(cursor))
        cursor.expect("{")
        self.graph = table[name] = GraphText(Place(self.source, cursor.number, token.column), name, inputs)

    def _input(self, cursor: Cursor) -> Input:
        place = Place(self.source, cursor.number, cursor.token.column)
        name = cursor.reference("%", "the name of an input")
        cursor.expect(":")
        return Input(place, name, parse_type(cursor, self.symbol))

    def _inside(self, cursor: Cursor, graph: GraphText) -> None:
        if cursor.accept("}"):
            if graph.result is None:
                cursor.fail(f"graph {graph.name!r} has no 'return'", 1)
            self.graph = None
        elif graph.result is not None:
            cursor.fail("'return' is the last line of a graph: expected '}'")
        elif cursor.accept("return"):
            graph.result = self._return(cursor)
        else:
            graph.calls.append(self._call(cursor))

    def _call(self, cursor: Cursor) -> Call:
        place = Place(self.source, cursor.number, cursor.token.column)
        name = cursor.reference("%", "a value")
        cursor.expect("=")
        operator = cursor.take("word", "an operator")
        cursor.expect("(")
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        cursor.items(")", lambda: self._argument(cursor, positional, keywords))
        kind = parse_type(cursor, self.symbol) if cursor.accept(":") else None
        return Call(place, name, operator.text, operator.column, positional, keywords, kind)

    def _argument(self, cursor: Cursor, positional: list[Any], keywords: dict[str, Any]) -> None:
        name = cursor.name_before("=")
        if name is None:
            if keywords:
                cursor.fail("an argument by position cannot follow one by name")
            positional.append(parse_value(cursor))
        elif name in keywords:
            cursor.fail(f"argument {name!r} stands twice")
        else:
            keywords[name] = parse_value(cursor)

    def _return(self, cursor: Cursor) -> Return:
        place = Place(self.source, cursor.number, cursor.token.column)
        bare = cursor.accept("bare")
        names: list[str | None] = []
        values: list[Any] = []
        while cursor.token.kind != "end":
            if values:
                cursor.expect(",")
            names.append(cursor.name_before("="))
            values.append(parse_value(cursor))
        if bare and len(values) != 1:
            cursor.fail("'return bare' takes one value")
        return Return(place, names, values, bare)


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    pieces, depth, start, quoted = [], 0, 0, False
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth <= 0:
            pieces.append(text[start:index])
            start = index + 1
    return [piece for piece in [*pieces, text[start:]] if piece]
