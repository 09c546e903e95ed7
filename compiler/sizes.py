"""Symbolic sizes: whether two expressions are the same size for every value that their symbols may take."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = ["expression", "same_size", "static_size"]

# Where sizes are unbounded, the largest that are tried: beyond any constant that a model compares a size with.
_FAR = 1 << 20
_PROBES = 7


def expression(size: int | torch.SymInt) -> Any:
    """Return `size` as a sympy expression, or as it is when it is a plain number."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def static_size(size: int | torch.SymInt) -> int | None:
    """Return `size` where it is one number (a symbol may have been specialized to one), else None."""
    found = expression(size)
    return int(found) if isinstance(found, int) or found.is_Integer else None


def same_size(first: Any, second: Any, shape_env: ShapeEnv | None) -> bool:
    """Tell whether two expressions agree over the ranges of their symbols.

    They do when they are equal as polynomials, or at a handful of points in the ranges, the ends among them: sizes are
    sums, products, quotients, minima and maxima, which do not agree there by chance.
    """
    if first == second:
        return True
    difference = sympy.expand(first - second)
    if difference == 0:
        return True
    symbols = sorted(difference.free_symbols, key=str)
    if not symbols:
        return False
    return all(
        difference.xreplace({symbol: _probe(symbol, shape_env, step, index) for index, symbol in enumerate(symbols)})
        == 0
        for step in range(_PROBES)
    )


def _probe(symbol: sympy.Symbol, shape_env: ShapeEnv | None, step: int, index: int) -> sympy.Integer:
    bounds = shape_env.var_to_range.get(symbol) if shape_env is not None else None
    low = int(bounds.lower) if bounds is not None and bounds.lower.is_Integer else 0
    high = int(bounds.upper) if bounds is not None and bounds.upper.is_Integer else _FAR
    low = max(low, 2)  # 0 and 1 are special-cased by PyTorch's own expressions
    points = (low, high, low + 1, (low + high) // 2, low + 5, low + (high - low) // 7, high - 1)
    # Several symbols move independently: each starts at another place of the list.
    return sympy.Integer(min(max(points[(step + 3 * index) % len(points)], low), max(high, low)))
