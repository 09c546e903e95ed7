"""Symbolic dimension expressions to and from text: `2*B`, `B + 1`, `(B + 1)//2`, `Mod(B, 4)`, `Max(1, B)`.

Numbers are integers, but for those within a function that rounds: `TruncToInt((1.5)*ToFloat(B))`.

Not handled: conditions inside a size (`Where`, `Piecewise`); they print under their class's name and do not parse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from torch.utils._sympy import functions
from torch.utils._sympy.symbol import SymT, symbol_is_type

from burnish.compiler.errors import TextError
from burnish.compiler.lexer import MAX_DEPTH, Cursor, Token

__all__ = ["SymbolNames", "is_unbacked", "parse_expression"]

_FUNCTIONS: dict[str, Any] = {
    name: getattr(functions, name)
    for name in (
        "CeilToInt",
        "CleanDiv",
        "FloatTrueDiv",
        "FloorToInt",
        "IntTrueDiv",
        "LShift",
        "Max",
        "Min",
        "Mod",
        "ModularIndexing",
        "PowByNatural",
        "PythonMod",
        "RShift",
        "RoundToInt",
        "ToFloat",
        "TruncToInt",
    )
}
_ROUNDING = ("CeilToInt", "FloorToInt", "RoundToInt", "TruncToInt")
_COMMUTATIVE = ("Max", "Min")
# Powers and literals above these come from no model, and cost time without bound.
_MAX_POWER = 8
_MAX_INTEGER = 2**63
_SUM, _PRODUCT, _ATOM = 0, 1, 2


class SymbolNames:
    """Names the symbols of a Program by first appearance: B (a leading input dimension), S0, S1, ...; unbacked U0, ...

    Attributes:
        names: what has been named so far, in order.
    """

    def __init__(self) -> None:
        self.names: dict[sympy.Symbol, str] = {}
        self._texts: dict[sympy.Expr, str] = {}
        self._counts = {"S": 0, "U": 0}

    def expression(self, value: sympy.Expr, *, leading: bool = False) -> str:
        """Return `value` as text; `leading` when it is dimension 0 of an input."""
        text = self._texts.get(value)
        if text is None:
            new = [symbol for symbol in value.free_symbols if symbol not in self.names]
            for symbol in sorted(new, key=str):
                self._name(symbol, leading and value.is_Symbol)
            text = self._texts[value] = _format(value, _SUM, self.names)
        return text

    def _name(self, symbol: sympy.Symbol, leading: bool) -> None:
        if leading and not self.names:
            self.names[symbol] = "B"
            return
        letter = "U" if is_unbacked(symbol) else "S"
        self.names[symbol] = f"{letter}{self._counts[letter]}"
        self._counts[letter] += 1


def is_unbacked(symbol: sympy.Symbol) -> bool:
    """Tell whether `symbol` is a size that depends on data (what `nonzero` returns), not on an input's shape."""
    return symbol_is_type(symbol, (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT))


def parse_expression(cursor: Cursor, symbol: Callable[[str, Token], sympy.Expr]) -> sympy.Expr:
    """Read an expression.

    Args:
        symbol: gives the symbol for a name, or raises.

    Raises:
        TextError: not an expression, or one that has no value (a division by zero).
    """
    return _Reader(cursor, symbol).sum(0)


class _Reader:
    def __init__(self, cursor: Cursor, symbol: Callable[[str, Token], sympy.Expr]) -> None:
        self.cursor = cursor
        self.symbol = symbol
        self.rounded = 0

    def sum(self, depth: int) -> sympy.Expr:
        if depth > MAX_DEPTH:
            self.cursor.fail(f"brackets are nested more than {MAX_DEPTH} deep")
        # One n-ary Add: adding terms one at a time would be quadratic.
        terms = [self.product(depth)]
        while (sign := self.cursor.token.text) in ("+", "-"):
            self.cursor.next()
            term = self.product(depth)
            terms.append(term if sign == "+" else -term)
        return terms[0] if len(terms) == 1 else self._check(lambda: sympy.Add(*terms))

    def product(self, depth: int) -> sympy.Expr:
        left = self.factor(depth)
        while (operator := self.cursor.token.text) in ("*", "//", "/"):
            self.cursor.next()
            left = self._apply(operator, left, self.factor(depth))
        return left

    def _apply(self, operator: str, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
        if operator == "*":
            return self._check(lambda: left * right)
        if operator == "//":
            return self._check(lambda: functions.FloorDiv(left, right))
        if not (left.is_Integer and right.is_Integer and right != 0):
            self.cursor.fail("'/' stands between two numbers only; sizes are divided with '//'")
        return sympy.Rational(left, right)

    def factor(self, depth: int) -> sympy.Expr:
        negative = False
        while self.cursor.accept("-"):
            negative = not negative
        base = self.atom(depth)
        if self.cursor.accept("**"):
            sign = -1 if self.cursor.accept("-") else 1
            token = self.cursor.take("number", "an exponent")
            power = sign * self.cursor.integer(token)
            if abs(power) > _MAX_POWER:
                self.cursor.fail(f"exponents above {_MAX_POWER} are not supported", token.column)
            base = self._check(lambda: base**power)
        return -base if negative else base

    def atom(self, depth: int) -> sympy.Expr:
        cursor = self.cursor
        token = cursor.next()
        if token.kind == "number":
            if self.rounded and not token.text.isdigit():
                return self._check(lambda: sympy.Float(float(token.text)))
            return self._check(lambda: sympy.Integer(cursor.integer(token)))
        if token.text == "(":
            inner = self.sum(depth + 1)
            cursor.expect(")")
            return inner
        if token.kind != "word":
            cursor.fail(f"expected a size, found {token.text[:40]!r}", token.column)
        if not cursor.accept("("):
            return self.symbol(token.text, token)
        if token.text not in _FUNCTIONS:
            cursor.fail(f"unknown function {token.text!r} in a size", token.column)
        self.rounded += token.text in _ROUNDING
        arguments = cursor.items(")", lambda: self.sum(depth + 1))
        self.rounded -= token.text in _ROUNDING
        return self._check(lambda: _FUNCTIONS[token.text](*arguments))

    def _check(self, build: Callable[[], sympy.Expr]) -> sympy.Expr:
        column = self.cursor.token.column
        try:
            value = build()
        except TextError:
            raise
        except Exception as error:
            message = f"this size has no value: {type(error).__name__}: {error}"
            cursor = self.cursor
            raise TextError(message, source=cursor.source, line=cursor.number, column=column) from error
        if not isinstance(value, sympy.Expr) or value.has(sympy.nan, sympy.zoo, sympy.oo):
            self.cursor.fail("this size has no value", column)
        if value.is_Number and abs(value) > _MAX_INTEGER:
            self.cursor.fail("this size is beyond 64 bits", column)
        if value.is_Pow and abs(value.exp) > _MAX_POWER:
            self.cursor.fail(f"exponents above {_MAX_POWER} are not supported", column)
        return value


def _format(value: sympy.Expr, place: int, names: dict[sympy.Symbol, str]) -> str:
    """Return the text of `value`, in brackets when it binds weaker than its place demands."""
    if value.is_Symbol:
        return names[value]
    if value.is_Number:
        text = _format_number(value)
        return f"({text})" if place > _SUM and not text.isdigit() else text
    if value.is_Add:
        text, own = _format_sum(value, names), _SUM
    elif value.is_Mul:
        text, own = _format_product(value, names), _PRODUCT
    elif value.is_Pow and value.exp.is_Integer:
        text, own = f"{_format(value.base, _ATOM, names)}**{value.exp}", _PRODUCT
    elif isinstance(value, functions.FloorDiv):
        left, right = value.args
        text, own = f"{_format(left, _ATOM, names)}//{_format(right, _ATOM, names)}", _PRODUCT
    else:
        arguments = [_format(argument, _SUM, names) for argument in value.args]
        name = type(value).__name__
        return f"{name}({', '.join(sorted(arguments) if name in _COMMUTATIVE else arguments)})"
    return f"({text})" if place > own else text


def _format_sum(value: sympy.Expr, names: dict[sympy.Symbol, str]) -> str:
    # Sorted by the text, since SymPy sorts by the symbols' own names, which differ from capture to capture.
    terms = []
    for term in value.args:
        text = _format(term, _SUM, names)
        negative = text.startswith("-")
        terms.append((bool(term.is_Number), text[negative:], negative))
    terms.sort()
    pieces = [f"-{terms[0][1]}" if terms[0][2] else terms[0][1]]
    pieces += [f" {'-' if negative else '+'} {text}" for _, text, negative in terms[1:]]
    return "".join(pieces)


def _format_product(value: sympy.Expr, names: dict[sympy.Symbol, str]) -> str:
    number, rest = value.as_coeff_Mul()
    factors = sorted(_format(factor, _ATOM, names) for factor in sympy.Mul.make_args(rest))
    text = "*".join(factors)
    if abs(number) == 1:
        return text if number == 1 else f"-{text}"
    if number.is_Integer:
        return f"{number}*{text}"
    sign = "-" if number < 0 else ""
    return f"{sign}({_format_number(abs(number))})*{text}"


def _format_number(value: sympy.Expr) -> str:
    # SymPy writes 15 digits of a float, too few to read the same one back.
    return repr(float(value)) if value.is_Float else str(value)
