"""What the sizes of the inputs must satisfy: the guards that capture left, and one size where two inputs share it.

A model that branches on a size in Python is captured with the branch that the example took. The guard (`B <= 2`,
`Mod(B, 2) == 0`, `B != S0`) is part of the signature: the text form prints it as `where`, and every call is held to it.

Cases not handled: guards that are not made of comparisons by "and" and "or"; see `conditions_of`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from burnish.compiler.expressions import SymbolNames, parse_expression
from burnish.compiler.lexer import Cursor

__all__ = ["Condition", "SizeRules", "conditions_of", "parse_condition", "parse_size", "range_conditions"]

_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_NAMES: dict[Any, str] = {
    sympy.Eq: "==", sympy.Ne: "!=", sympy.Le: "<=", sympy.Ge: ">=", sympy.Lt: "<", sympy.Gt: ">",
}  # fmt: skip
_MIRROR = str.maketrans("<>", "><")
_SHAPE_FUNCTIONS = ("/torch/_prims", "/torch/_subclasses/", "/torch/_refs/", "/torch/_meta", "/torch/_decomp/")
# Below this, PyTorch writes a lower bound that it does not mean: sizes 0 and 1 are allowed all the same.
_SPECIAL_SIZES = 2
# Sizes that are tried, to see which a condition excludes.
_TRIED = 65
_FAR = 1 << 20


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of two sizes: `left relation right`, with a relation out of == != <= >= < >."""

    left: sympy.Expr
    relation: str
    right: sympy.Expr

    def text(self, names: SymbolNames) -> str:
        """Return the condition with the symbols' names."""
        return f"{names.expression(self.left)} {self.relation} {names.expression(self.right)}"

    def symbols(self) -> set[sympy.Symbol]:
        """Return the symbols on both sides."""
        return set(self.left.free_symbols | self.right.free_symbols)

    def excluded_size(self) -> tuple[sympy.Symbol, int] | None:
        """Return the one size, 0 apart, that it excludes: 3 of `B != 3`, 1 of `B > 1` and of `384 < 384*B`."""
        symbols = self.symbols()
        if len(symbols) != 1:
            return None
        (symbol,) = symbols
        if self.relation == "!=" and self.left == symbol and self.right.is_Integer:
            return symbol, int(self.right)
        excluded = [size for size in range(1, _TRIED) if not self.holds({symbol: size})]
        return (symbol, excluded[0]) if len(excluded) == 1 and self.holds({symbol: _FAR}) else None

    def holds(self, values: Mapping[sympy.Symbol, int]) -> bool:
        """Tell whether it is satisfied by these sizes."""
        numbers = {symbol: sympy.Integer(value) for symbol, value in values.items()}
        return bool(_RELATIONS[self.relation](self.left.xreplace(numbers), self.right.xreplace(numbers)))


def conditions_of(shape_env: ShapeEnv | None, symbols: set[sympy.Symbol]) -> tuple[Condition, ...]:
    """Return what must hold of `symbols`, the sizes of the inputs, besides their ranges.

    Of alternatives the one that the example inputs satisfy is taken. Where a guard is no comparison, the sizes in it
    must be those of the example inputs.
    """
    if shape_env is None:
        return ()
    found: dict[Condition, None] = {}
    bounds: dict[Condition, None] = {}
    pending = [guard.expr for guard in shape_env.guards if not _is_special_case(guard)]
    while pending:
        expression = shape_env.replace(pending.pop(0))
        if not expression.free_symbols or not expression.free_symbols <= symbols:
            continue
        if isinstance(expression, sympy.And):
            pending[:0] = expression.args
        elif isinstance(expression, sympy.Or):
            sizes = {symbol: sympy.Integer(shape_env.size_hint(symbol)) for symbol in expression.free_symbols}
            pending[:0] = [next(each for each in expression.args if each.xreplace(sizes) == sympy.true)]
        elif type(expression) in _NAMES:
            left, relation, right = expression.lhs, _NAMES[type(expression)], expression.rhs
            bound = _bound(left, relation, right)
            if bound is not None:
                bounds[bound] = None
            elif relation != "==" or Condition(right, relation, left) not in found:
                found[Condition(left, relation, right)] = None
        else:
            for symbol in sorted(expression.free_symbols, key=str):
                found[Condition(symbol, "==", sympy.Integer(shape_env.size_hint(symbol)))] = None
    return (*(each for each in found if not _is_range(each)), *bounds)


def range_conditions(shape_env: ShapeEnv | None, symbols: Iterable[sympy.Symbol]) -> list[Condition]:
    """Return the bounds of `symbols` as conditions."""
    found: list[Condition] = []
    for symbol in symbols:
        bounds = shape_env.var_to_range.get(symbol) if shape_env is not None else None
        if bounds is not None and bounds.lower.is_Integer and int(bounds.lower) > _SPECIAL_SIZES:
            found.append(Condition(symbol, ">=", bounds.lower))
        if bounds is not None and bounds.upper.is_Integer:
            found.append(Condition(symbol, "<=", bounds.upper))
    return found


def parse_condition(cursor: Cursor, symbol: Callable[[str, Any], sympy.Expr]) -> Condition:
    """Read a condition.

    Raises:
        TextError: it is none.
    """
    left = parse_expression(cursor, symbol)
    token = cursor.next()
    if token.text not in _RELATIONS:
        cursor.fail(f"expected one of {' '.join(_RELATIONS)}", token.column)
    return Condition(left, token.text, parse_expression(cursor, symbol))


class SizeRules:
    """Holds the sizes of a call's inputs to the sizes and conditions of a signature, all given as text.

    Args:
        shapes: by input, its sizes: numbers, expressions, or None for any size.
        conditions: comparisons of expressions.

    Raises:
        TextError: an expression or a condition cannot be read.
    """

    def __init__(self, shapes: Mapping[str, tuple[int | str | None, ...]], conditions: tuple[str, ...]) -> None:
        self._sizes = [
            (name, index, size, parse_size(size))
            for name, shape in shapes.items()
            for index, size in enumerate(shape)
            if isinstance(size, str)
        ]
        self._conditions = [(text, _read(text, parse_condition)) for text in conditions]
        self.objection = functools.lru_cache(maxsize=256)(self._objection)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Return what is wrong with the sizes of a call, or None."""
        return self.objection(tuple(shapes[name][index] for name, index, _, _ in self._sizes))

    def _objection(self, sizes: tuple[int, ...]) -> str | None:
        values: dict[sympy.Symbol, int] = {}
        first: dict[sympy.Symbol, str] = {}
        for (name, index, _, expression), size in zip(self._sizes, sizes, strict=True):
            if not expression.is_Symbol:
                continue
            place = f"dimension {index} of input {name!r}"
            if values.setdefault(expression, size) != size:
                return f"{place} is {size} and {first[expression]} is {values[expression]}, but the model has one size"
            first.setdefault(expression, place)
        for (name, index, text, expression), size in zip(self._sizes, sizes, strict=True):
            if expression.free_symbols <= values.keys():
                wanted = expression.xreplace({symbol: sympy.Integer(value) for symbol, value in values.items()})
                if wanted != size:
                    return f"dimension {index} of input {name!r} must be {text} = {wanted}, but is {size}"
        for text, condition in self._conditions:
            if condition.symbols() <= values.keys() and not condition.holds(values):
                given = ", ".join(f"{symbol} = {first[symbol]} = {values[symbol]}" for symbol in condition.symbols())
                return f"the model was captured for {text} only, and {given}"
        return None


def _is_special_case(guard: Any) -> bool:
    """Tell whether a guard only says that PyTorch took the general path, not the one for sizes 0 and 1.

    Its shape functions do so for layout and broadcasting, and what they record holds for 0 and 1 as well. A guard that
    the model itself caused, by a branch in Python, comes from elsewhere.
    """
    expression, location = guard.expr, getattr(guard.sloc, "framework_loc", None)
    if location is None or not any(part in location.filename for part in _SHAPE_FUNCTIONS):
        return False
    sizes = [each for each in expression.args if each.is_Integer]
    return type(expression) in _NAMES and type(expression) is not sympy.Eq and all(0 <= each <= 2 for each in sizes)


def _bound(left: sympy.Expr, relation: str, right: sympy.Expr) -> Condition | None:
    """Return `x == Min(x, y)` as `x <= y`, and with Max as `x >= y`; None for other comparisons."""
    for size, chosen in ((left, right), (right, left)):
        # PyTorch has classes of its own beside sympy's.
        name = type(chosen).__name__
        if relation != "==" or name not in ("Min", "Max") or len(chosen.args) != 2:
            continue
        others = [each for each in chosen.args if each != size]
        if len(others) == 1:
            return Condition(size, "<=" if name == "Min" else ">=", others[0])
    return None


def _is_range(condition: Condition) -> bool:
    """Tell whether the range of a symbol says this already."""
    left, relation, right = condition.left, condition.relation, condition.right
    if left.is_Integer and right.is_Symbol:
        left, relation, right = right, relation.translate(_MIRROR), left
    if not (left.is_Symbol and right.is_Integer) or relation in ("==", "!="):
        return False
    return relation in ("<", "<=") or int(right) + (relation == ">") > _SPECIAL_SIZES


def parse_size(size: str) -> sympy.Expr:
    """Read a size as it is written in a signature; equal names give equal symbols.

    Raises:
        TextError: it is no expression.
    """
    return _read(size, parse_expression)


def _read(text: str, parse: Callable[[Cursor, Callable[[str, Any], sympy.Expr]], Any]) -> Any:
    cursor = Cursor(text, text, 1)
    found = parse(cursor, lambda name, _: sympy.Symbol(name, integer=True, nonnegative=True))
    cursor.end()
    return found
