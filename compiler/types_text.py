"""Types to and from text: `f32[B, 3, 224, 224]`, `sym(2*B)`, `symbool`, `symfloat`, `none`, `(f32[2], i64[])`.

A type is a dtype and a shape. Strides and devices are not part of it: a parsed Program is contiguous, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from burnish.compiler.errors import BurnishError
from burnish.compiler.expressions import SymbolNames, parse_expression
from burnish.compiler.lexer import Cursor, Token

__all__ = ["DTYPES", "ScalarType", "TensorType", "TupleType", "Type", "dtype_name", "format_type", "parse_type"]

_SHORT = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
    "bool": "b1",
    "complex32": "c32",
    "complex64": "c64",
    "complex128": "c128",
}
# Rare dtypes (float8_e4m3fn, quint8, ...) go by PyTorch's own name.
_NAMES: dict[torch.dtype, str] = {
    value: _SHORT.get(str(value).removeprefix("torch."), str(value).removeprefix("torch."))
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}

DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in _NAMES.items()}
"""The dtypes by the name under which they are printed."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's dtype and shape; the symbols in the shape are those that the parser chose."""

    dtype: torch.dtype
    shape: tuple[sympy.Expr | int, ...]


@dataclass(frozen=True, slots=True)
class ScalarType:
    """A number: kind "sym" (with its expression), "symbool", "symfloat", or "none" for no value."""

    kind: str
    value: sympy.Expr | int | None = None


@dataclass(frozen=True, slots=True)
class TupleType:
    """Several values."""

    items: tuple[Type, ...]


Type = TensorType | ScalarType | TupleType


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of `dtype` in the text form."""
    return _NAMES[dtype]


def format_type(value: Any, names: SymbolNames | None = None, *, is_input: bool = False) -> str:
    """Return the type of `value` (a fake or real tensor, a number, None, or a tuple of them) as text.

    Args:
        names: names of the Program's symbols so far; by default the symbols are named within this type alone.
        is_input: whether this is a graph's input, whose leading dimension may be called B.
    """
    names = names or SymbolNames()
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(
            [
                str(size)
                if isinstance(size, int)
                else names.expression(size.node.expr, leading=is_input and index == 0)
                for index, size in enumerate(value.shape)
            ]
        )
        return f"{_NAMES[value.dtype]}[{sizes}]"
    if value is None:
        return "none"
    if isinstance(value, (bool, torch.SymBool)):
        return "symbool"
    if isinstance(value, (float, torch.SymFloat)):
        return "symfloat"
    if isinstance(value, int):
        return f"sym({value})"
    if isinstance(value, torch.SymInt):
        return f"sym({names.expression(value.node.expr)})"
    if isinstance(value, (tuple, list)):
        items = [format_type(item, names) for item in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    raise BurnishError(f"a value of type {type(value).__name__} has no text form")


def parse_type(cursor: Cursor, symbol: Callable[[str, Token], sympy.Expr]) -> Type:
    """Read a type; `symbol` gives the symbol for a name in a shape.

    Raises:
        TextError: not a type.
    """
    if cursor.accept("("):
        return TupleType(tuple(cursor.items(")", lambda: parse_type(cursor, symbol))))
    token = cursor.take("word", "a type")
    if token.text in ("symbool", "symfloat", "none"):
        return ScalarType(token.text)
    if token.text == "sym":
        cursor.expect("(")
        value = _size(cursor, symbol)
        cursor.expect(")")
        return ScalarType("sym", value)
    if token.text not in DTYPES:
        cursor.fail(f"unknown type {token.text!r}", token.column)
    cursor.expect("[")
    return TensorType(DTYPES[token.text], tuple(cursor.items("]", lambda: _size(cursor, symbol))))


def _size(cursor: Cursor, symbol: Callable[[str, Token], sympy.Expr]) -> sympy.Expr | int:
    value = parse_expression(cursor, symbol)
    if value.is_Integer:
        return int(value)
    if value.is_Number:
        cursor.fail("a size is a whole number")
    return value
