"""What a pass promises about the numbers, and the measure of how far two results differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["Exact", "Lossy", "Numerics", "Reassociates", "comparable", "drift", "tolerance", "worst_drift"]

_TOLERANCE = {torch.float16: 5e-2, torch.bfloat16: 1e-1}
_DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Exact:
    """Every output is bit-equal, on every input."""


@dataclass(frozen=True, slots=True)
class Reassociates:
    """The same real-number function, rounded differently: `drift` is at most `rtol`."""

    rtol: float = 1e-5


@dataclass(frozen=True, slots=True)
class Lossy:
    """Another function on purpose: measured and reported, subject to the user's accuracy budget."""


Numerics = Exact | Reassociates | Lossy


def drift(actual: Any, expected: Any) -> float:
    """Return how far `actual` is from `expected`: max|a - e| / max|e| over the finite elements.

    This is the relative error in the maximum norm (Higham, Accuracy and Stability of Numerical Algorithms, 6.2): one
    wrong element shows however many are right, and elements near zero do not blow it up. 0.0 means bit-equal (NaN
    equals NaN, and infinities must agree in place and sign). Integers, booleans and plain numbers are 0.0 when equal
    and infinite otherwise, as are results of another shape, dtype or kind. On which devices the two are does not count.
    """
    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        same = type(actual) is type(expected) and (actual == expected or (actual != actual and expected != expected))
        return 0.0 if same else math.inf
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    actual = actual.to(expected.device)
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(actual, expected) else math.inf
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, e = actual.detach().to(wide), expected.detach().to(wide)
    finite = torch.isfinite(e)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(_where(~finite, a), _where(~finite, e)):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    worst = float((a - e)[finite].abs().max())
    if worst == 0.0:
        return 0.0
    scale = float(e[finite].abs().max())
    return worst / scale if scale > 0.0 else math.inf


def comparable(actual: Any, expected: Any) -> Any:
    """Return `actual` in the dtype of `expected` where both are floating point: a lossy pass may convert outputs."""
    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        return actual
    both = actual.is_floating_point() and expected.is_floating_point()
    return actual.to(expected.dtype) if both else actual


def worst_drift(actual: Iterable[Any], expected: Iterable[Any]) -> float:
    """Return the largest drift over corresponding leaves; infinite when their numbers differ."""
    pairs = list(zip(actual, expected, strict=True))
    return max((drift(a, e) for a, e in pairs), default=0.0)


def tolerance(program: Program) -> float:
    """Return the largest drift that rounding explains, given the element types that `program` computes in."""
    dtypes = {
        value.dtype
        for _, graph in program.all_graphs()
        for node in graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor)
    }
    return max([_DEFAULT_TOLERANCE, *(_TOLERANCE[dtype] for dtype in dtypes & _TOLERANCE.keys())])


def _where(mask: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    # NaN never equals itself: compare it as a number of its own.
    return torch.nan_to_num(torch.where(mask, value, 0), nan=1e300, posinf=2e300, neginf=-2e300)
