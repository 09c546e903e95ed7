"""Argument values and pytree structures to and from text.

Values are JSON-like: `1`, `1e-05`, `-inf`, `True`, `None`, `"text"`, `[1, 2]`, `(1,)`, `{"key": 1}`, further
`slice(0, 1, None)` and `complex(0.0, 1.0)`. Dtypes, layouts and memory formats are bare words (`f32`, `strided`,
`channels_last`), operators dotted words. `%name` is a value of the graph, `@name` a constant, `&name` a branch.
Devices are strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from burnish.compiler.errors import BurnishError, TextError
from burnish.compiler.lexer import Cursor, Token, quoted_name
from burnish.compiler.operators import find_operator, operator_name
from burnish.compiler.structure import Container, Leaf, Literal, Structure
from burnish.compiler.types_text import DTYPES, dtype_name

__all__ = ["Reference", "format_key", "format_structure", "format_value", "parse_structure", "parse_value"]

_WORDS: dict[str, Any] = {"None": None, "True": True, "False": False, "inf": float("inf"), "nan": float("nan")}
_WORDS |= DTYPES
_WORDS |= {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, (torch.layout, torch.memory_format))
}
_NAMED_KINDS = (torch.layout, torch.memory_format)


@dataclass(frozen=True, slots=True)
class Reference:
    """A `%value`, `@constant` or `&branch` in a parsed line; `column` is 1-based."""

    sigil: str
    name: str
    column: int


def format_value(value: Any, refer: Callable[[fx.Node], str]) -> str:
    """Return an argument as text; `refer` gives the text for a node."""
    if isinstance(value, fx.Node):
        return refer(value)
    if isinstance(value, str):
        return json.dumps(value)
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join([format_value(item, refer) for item in value])}]"
    if isinstance(value, tuple):
        items = [format_value(item, refer) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(str(key))}: {format_value(item, refer)}' for key, item in value.items())}}}"
    return _format_rare(value, refer)


def parse_value(cursor: Cursor) -> Any:
    """Read a value; nodes, constants and branches come back as `Reference`."""
    token = cursor.next()
    if token.kind == "reference":
        return Reference(token.text[0], cursor.unquote(token), token.column)
    if token.kind == "string":
        return cursor.unquote(token)
    if token.kind == "word" and token.text not in ("inf", "nan"):
        return _parse_word(cursor, token)
    if token.text == "[":
        return cursor.items("]", lambda: parse_value(cursor))
    if token.text == "(":
        items, comma = cursor.items_and_comma(")", lambda: parse_value(cursor))
        if len(items) == 1 and not comma:
            cursor.fail("a tuple of one item is written (item,)", token.column)
        return tuple(items)
    if token.text == "{":
        return dict(cursor.items("}", lambda: _parse_entry(cursor, parse_value)))
    return _parse_number(cursor, token)


def format_key(key: str) -> str:
    """Return a dict key, or the name of a graph or an output: bare where it is an identifier, else in JSON quotes."""
    return key if key.isidentifier() and key.isascii() else json.dumps(key)


def format_structure(structure: Structure) -> str:
    """Return a pytree structure as text: `({%x, %y}, {mask: %mask})`, `!"kind"("context"){logits: %logits}`."""
    if isinstance(structure, Leaf):
        return f"%{quoted_name(structure.name)}"
    if isinstance(structure, Literal):
        return json.dumps(structure.value) if isinstance(structure.value, str) else repr(structure.value)
    parts = [format_structure(child) for child in structure.children]
    if structure.kind == "list":
        return f"[{', '.join(parts)}]"
    if structure.keys or structure.kind == "dict":
        entries = [f"{format_key(key)}: {part}" for key, part in zip(structure.keys, parts, strict=True)]
        text = f"{{{', '.join(entries)}}}"
    else:
        text = f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if structure.kind in ("tuple", "dict"):
        return text
    return f"!{json.dumps(structure.kind)}({json.dumps(structure.context)}){text}"


def parse_structure(cursor: Cursor) -> Structure:
    """Read a pytree structure."""
    token = cursor.token
    if cursor.accept("["):
        return Container("list", (), tuple(cursor.items("]", lambda: parse_structure(cursor))))
    if cursor.accept("!"):
        kind = cursor.unquote(cursor.take("string", "the name of a registered class"))
        cursor.expect("(")
        context = cursor.unquote(cursor.take("string", "the context of the class"))
        cursor.expect(")")
        if cursor.token.text not in ("(", "{"):
            cursor.fail("expected the parts of the class in '(...)' or '{...}'")
        parts = parse_structure(cursor)
        assert isinstance(parts, Container)
        return Container(kind, parts.keys, parts.children, context)
    if cursor.accept("("):
        children, comma = cursor.items_and_comma(")", lambda: parse_structure(cursor))
        if len(children) == 1 and not comma:
            cursor.fail("a tuple of one item is written (item,)", token.column)
        return Container("tuple", (), tuple(children))
    if cursor.accept("{"):
        entries = cursor.items("}", lambda: _parse_entry(cursor, parse_structure))
        keys = tuple(key for key, _ in entries)
        if len(set(keys)) != len(keys):
            cursor.fail("a key stands twice in this dict", token.column)
        return Container("dict", keys, tuple(child for _, child in entries))
    value = parse_value(cursor)
    if isinstance(value, Reference) and value.sigil == "%":
        return Leaf(value.name)
    if value is None or isinstance(value, (bool, int, float, str)):
        return Literal(value)
    cursor.fail("expected a %name, a literal or a container", token.column)


def _format_rare(value: Any, refer: Callable[[fx.Node], str]) -> str:
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, _NAMED_KINDS):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return json.dumps(str(value))
    if isinstance(value, slice):
        return f"slice({', '.join(format_value(part, refer) for part in (value.start, value.stop, value.step))})"
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, (OpOverload, HigherOrderOperator)):
        return operator_name(value)
    raise BurnishError(f"an argument of type {type(value).__name__} has no text form: {str(value)[:80]}")


def _parse_entry(cursor: Cursor, read: Callable[[Cursor], Any]) -> tuple[str, Any]:
    token = cursor.next()
    if token.kind not in ("word", "string"):
        cursor.fail("expected a key", token.column)
    cursor.expect(":")
    return cursor.unquote(token), read(cursor)


def _parse_number(cursor: Cursor, token: Token) -> int | float:
    sign = 1
    if token.text == "-":
        sign, token = -1, cursor.next()
    if token.text in ("inf", "nan"):
        return sign * float(token.text)
    if token.kind != "number":
        cursor.fail(f"expected a value, found {token.text[:40]!r}", token.column)
    return sign * (cursor.integer(token) if token.text.isdigit() else float(token.text))


def _parse_word(cursor: Cursor, token: Token) -> Any:
    if token.text in _WORDS:
        return _WORDS[token.text]
    if token.text in ("slice", "complex"):
        cursor.expect("(")
        parts = cursor.items(")", lambda: parse_value(cursor))
        if token.text == "slice" and len(parts) == 3:
            return slice(*parts)
        if token.text == "complex" and len(parts) == 2 and all(isinstance(part, (int, float)) for part in parts):
            return complex(float(parts[0]), float(parts[1]))
        cursor.fail(f"{token.text}(...) has other parts", token.column)
    if "." in token.text:
        try:
            return find_operator(token.text)
        except BurnishError as error:
            raise TextError(str(error), source=cursor.source, line=cursor.number, column=token.column) from error
    cursor.fail(f"unknown word {token.text[:40]!r}", token.column)
