"""Arithmetic read back from operators, in whatever order and grouping it was written.

`product` flattens a multiplication chain, `affine` peels numbers off a value, `polynomial` expands a value in powers
of another one. All of them look at a bounded number of operators, which keeps a sweep linear.

Not handled: a division or power that is no polynomial's, other than as a factor of the outermost product; numbers in
integer tensors; operators with `rounding_mode`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.passes.fusion.matching import calls, number_of

__all__ = ["PRODUCTS", "Product", "affine", "close", "polynomial", "product"]

_MUL = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.multiply.Tensor", "aten.multiply.Scalar")
_DIV = (
    "aten.div.Tensor",
    "aten.div.Scalar",
    "aten.divide.Tensor",
    "aten.divide.Scalar",
    "aten.true_divide.Tensor",
    "aten.true_divide.Scalar",
)
PRODUCTS = (*_MUL, *_DIV)
"""The operators whose result is a product or a quotient."""
_ADD = ("aten.add.Tensor", "aten.add.Scalar")
_SUB = ("aten.sub.Tensor", "aten.sub.Scalar", "aten.subtract.Tensor", "aten.subtract.Scalar")
_RSUB = ("aten.rsub.Tensor", "aten.rsub.Scalar")
_DEGREE = 3
_OPERATORS = 16
# Six digits: what is left of float32 behind a few roundings, and how precisely x / 1.41421 says the root of 2. An
# activation changes by a tenth of what the pass may change.
_TOLERANCE = 3e-6


@dataclass
class Product:
    """`scale` * the product of `top` / the product of `bottom`."""

    scale: float = 1.0
    top: list[fx.Node] = field(default_factory=list)
    bottom: list[fx.Node] = field(default_factory=list)


def close(a: float, b: float) -> bool:
    """Tell whether two constants are the same one, written with six digits or more."""
    return math.isclose(a, b, rel_tol=_TOLERANCE)


def product(root: fx.Node, rewriter: Rewriter) -> Product:
    """Return `root` as a product; values that something outside the product reads stay whole."""
    found, budget = Product(), _OPERATORS
    stack: list[tuple[Any, bool]] = [(root, True)]
    while stack:
        value, on_top = stack.pop()
        number = number_of(value, rewriter)
        if number is not None:
            # A division by zero is like nothing that is looked for, and NaN is close to nothing.
            found.scale = found.scale * number if on_top else found.scale / number if number else math.nan
            continue
        whole = budget == 0 or (value is not root and len(value.users) != 1)
        budget -= not whole
        if not whole and calls(value, *_MUL):
            stack += [(operand, on_top) for operand in _operands(value)]
        elif not whole and calls(value, *_DIV):
            above, below = _operands(value)
            stack += [(above, on_top), (below, not on_top)]
        elif not whole and calls(value, "aten.reciprocal"):
            stack.append((value.args[0], not on_top))
        elif not whole and calls(value, "aten.neg"):
            found.scale = -found.scale
            stack.append((value.args[0], on_top))
        else:
            (found.top if on_top else found.bottom).append(value)
    return found


def affine(value: Any, rewriter: Rewriter) -> Iterator[tuple[float, float, fx.Node]]:
    """Yield (offset, scale, inner) such that `value` is offset + scale * inner: (0, 1, value) first, then deeper."""
    offset, scale = 0.0, 1.0
    for _ in range(_OPERATORS):
        if not isinstance(value, fx.Node):
            return
        yield offset, scale, value
        terms = _terms(value, rewriter)
        if terms is None:
            return
        numbers = [(factor, number_of(each, rewriter)) for factor, each in terms]
        unknown = [index for index, (_, number) in enumerate(numbers) if number is None]
        if len(unknown) != 1:
            return
        offset += scale * sum(factor * number for factor, number in numbers if number is not None)
        factor, value = terms[unknown[0]]
        scale *= factor


def polynomial(value: Any, x: fx.Node, rewriter: Rewriter) -> list[float] | None:
    """Return the coefficients of `value` in powers of `x`, lowest first, without zeros at the end.

    None when it is no polynomial of degree 3 or less in `x` alone.
    """
    known: dict[fx.Node, list[float] | None] = {x: [0.0, 1.0]}

    def expand(each: Any) -> list[float] | None:
        if isinstance(each, fx.Node) and each in known:
            return known[each]
        number = number_of(each, rewriter)
        if number is not None:
            return [number]
        if not isinstance(each, fx.Node) or len(known) > _OPERATORS:
            return None
        known[each] = None
        known[each] = evaluate(each)
        return known[each]

    def evaluate(node: fx.Node) -> list[float] | None:
        if calls(node, "aten.square"):
            powers: Sequence[Any] | None = [node.args[0]] * 2
        elif calls(node, "aten.pow.Tensor_Scalar"):
            exponent = node.args[1]
            powers = [node.args[0]] * int(exponent) if exponent in range(1, _DEGREE + 1) else None  # type: ignore[arg-type]
        elif calls(node, *_MUL):
            powers = _operands(node)
        else:
            terms = _terms(node, rewriter)
            if terms is None:
                return None
            parts = [(factor, expand(each)) for factor, each in terms]
            total = [0.0] * (_DEGREE + 1)
            for factor, part in parts:
                if part is None:
                    return None
                for index, coefficient in enumerate(part):
                    total[index] += factor * coefficient
            return _trimmed(total)
        result: list[float] | None = [1.0] if powers is not None else None
        for each in powers or ():
            result = _times(result, expand(each))
        return result

    return expand(value)


def _operands(node: fx.Node) -> tuple[Any, Any]:
    found = arguments(node)
    return found["self"], found["other"]


def _terms(node: fx.Node, rewriter: Rewriter) -> list[tuple[float, Any]] | None:
    """Return `node` as a sum of terms (factor, operand); None when it is no sum, and no product with a number."""
    if calls(node, "aten.neg"):
        return [(-1.0, node.args[0])]
    if calls(node, *_ADD, *_SUB, *_RSUB):
        found = arguments(node)
        alpha = found.get("alpha", 1)
        if type(alpha) not in (int, float):
            return None
        if calls(node, *_RSUB):
            return [(-float(alpha), found["self"]), (1.0, found["other"])]
        return [(1.0, found["self"]), (float(alpha) if calls(node, *_ADD) else -float(alpha), found["other"])]
    if not calls(node, *PRODUCTS):
        return None
    left, right = _operands(node)
    number = number_of(right, rewriter)
    if calls(node, *_DIV):
        return None if number is None or number == 0 else [(1.0 / number, left)]
    if number is not None:
        return [(number, left)]
    number = number_of(left, rewriter)
    return None if number is None else [(number, right)]


def _times(a: list[float] | None, b: list[float] | None) -> list[float] | None:
    if a is None or b is None or len(a) + len(b) > _DEGREE + 2:
        return None
    result = [0.0] * max(len(a) + len(b) - 1, 0)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            result[i + j] += left * right
    return _trimmed(result)


def _trimmed(coefficients: list[float]) -> list[float]:
    while coefficients and coefficients[-1] == 0:
        coefficients.pop()
    return coefficients
