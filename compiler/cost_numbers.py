"""Numbers of the cost model: ints where sizes are static, sympy expressions over the shape symbols elsewhere.

Nothing here compares a SymInt or asks the shape environment anything, so that no guard is ever added. Every symbol
is taken to be a size, hence not negative. Expressions are kept expanded: a sum of integer multiples of products.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import sympy
import torch

__all__ = [
    "Number", "Shape", "estimated", "evaluated", "from_terms", "larger", "number", "product", "shape_of", "terms",
    "total",
]  # fmt: skip

Number: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = "tuple[Number, ...]"
Terms: TypeAlias = "dict[Any, Any]"

# Equal to sympy's One and with the same hash, but much faster.
_ONE = 1


def number(size: int | torch.SymInt) -> Number:
    """Return `size` as an int or an expression."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_Integer else expression
    return int(size)


def shape_of(tensor: torch.Tensor) -> Shape:
    """Return the shape of a (fake) tensor."""
    return tuple([size if type(size) is int else number(size) for size in tensor.shape])


def product(factors: Shape) -> Number:
    """Return the product of `factors`."""
    if all(type(factor) is int for factor in factors):
        return math.prod(factors)
    return _symbolic_product(factors)


def terms(value: Number) -> Mapping[Any, Any]:
    """Return the coefficient of each product in `value`; the constant term is under 1."""
    return {_ONE: value} if isinstance(value, int) else _symbolic_terms(value)


def from_terms(coefficients: Mapping[Any, Any]) -> Number:
    """Return the sum that `terms` takes apart."""
    found = {key: coefficient for key, coefficient in coefficients.items() if coefficient}
    if not found:
        return 0
    if len(found) == 1 and _ONE in found:
        return int(found[_ONE])
    return _symbolic_sum(frozenset(found.items()))


def total(numbers: Iterable[Number]) -> Number:
    """Return the sum of `numbers`, in time linear in their count."""
    static = 0
    coefficients: Terms = {}
    for value in numbers:
        if isinstance(value, int):
            static += value
        else:
            for key, coefficient in _symbolic_terms(value).items():
                coefficients[key] = coefficients.get(key, 0) + coefficient
    if not coefficients:
        return static
    coefficients[_ONE] = coefficients.get(_ONE, 0) + static
    return from_terms(coefficients)


def larger(numbers: Iterable[Number]) -> Number:
    """Return the largest of `numbers`: a `Max` of those that no other one bounds for every size."""
    front: list[Number] = []
    for value in set(numbers):
        if not any(_bounds(other, value) for other in front):
            front = [other for other in front if not _bounds(value, other)] + [value]
    if not front:
        return 0
    # Unevaluated, because sympy would try to decide which one is largest.
    return front[0] if len(front) == 1 else sympy.Max(*front, evaluate=False)


def evaluated(value: Number, sizes: Mapping[Any, int]) -> Number:
    """Return `value` with symbols replaced; an int unless a symbol is left over."""
    if isinstance(value, int):
        return value
    result = value.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()})
    return int(result) if result.is_number else result


def estimated(value: Number) -> int:
    """Return `value` with 1 for every symbol that is left, a size that depends on data (what `nonzero` returns)."""
    return value if isinstance(value, int) else int(value.xreplace(dict.fromkeys(value.free_symbols, sympy.Integer(1))))


def _bounds(upper: Number, lower: Number) -> bool:
    """Tell whether `upper` is at least `lower` by comparing coefficients alone."""
    if isinstance(upper, int) and isinstance(lower, int):
        return upper >= lower
    above, below = terms(upper), terms(lower)
    return all(above.get(key, 0) >= below.get(key, 0) for key in {**above, **below})


@functools.lru_cache(maxsize=16384)
def _symbolic_product(factors: Shape) -> Number:
    result = sympy.expand(sympy.Mul(*factors))
    return int(result) if result.is_Integer else result


@functools.lru_cache(maxsize=16384)
def _symbolic_terms(value: Any) -> Mapping[Any, Any]:
    found = sympy.expand(value).as_coefficients_dict()
    return {key: int(coefficient) if coefficient.is_Integer else coefficient for key, coefficient in found.items()}


@functools.lru_cache(maxsize=16384)
def _symbolic_sum(items: frozenset[tuple[Any, Any]]) -> Number:
    return sympy.Add(*(coefficient * key for key, coefficient in items))
