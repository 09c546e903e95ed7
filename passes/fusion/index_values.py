"""Values that depend on indices alone, of tensors whose sizes may be symbols.

A `Linear` value is c + sum k_d i_d at the index i, a `Choice` has one value where a linear form of the indices is at
least (or equal to) zero and another elsewhere, and a `Grid` is a constant tensor, of size 1 along each dimension along
which the value does not vary: so a batch of any size needs no more than one row. No size is ever guarded on: what
holds, holds for every value of the symbols.

A value has one form: a uniform one is a Grid of one element, a Grid of int64 that is linear is a Linear, and a Grid
that is one number below a diagonal and another above it is a Choice.

Not handled: conjunctions of two choices, integers other than int64 as linear forms, grids of more than 2^22 elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from burnish.compiler.sizes import expression, static_size

__all__ = [
    "MOST_ELEMENTS",
    "Choice",
    "Grid",
    "Linear",
    "Sizes",
    "Value",
    "aligned",
    "choice",
    "grid_of",
    "joint",
    "linear_of",
    "settled",
    "substitute",
    "varies",
]

# Grids are computed while compiling.
MOST_ELEMENTS = 1 << 22
# Beyond these a linear form could leave int64 at sizes that fit into a memory.
_LARGEST_FACTOR = 1 << 24
_LARGEST_CONSTANT = 1 << 40

Sizes = Sequence[int | torch.SymInt]


@dataclass(frozen=True, slots=True)
class Linear:
    """The integer `constant` + sum over dimensions d of `factors`[d] * i_d at the index i."""

    constant: int
    factors: tuple[int, ...]

    def plus(self, other: Linear, times: int = 1) -> Linear:
        """Return self + times * other."""
        factors = tuple(a + times * b for a, b in zip(self.factors, other.factors, strict=True))
        return Linear(self.constant + times * other.constant, factors)

    def at(self, indices: Sequence[Linear], rank: int) -> Linear:
        """Return the form at the index `indices`, whose entries are forms over `rank` dimensions."""
        result = Linear(self.constant, (0,) * rank)
        for factor, index in zip(self.factors, indices, strict=True):
            result = result.plus(index, factor) if factor else result
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A constant on the CPU that broadcasts to the value, of size 1 along dimensions along which it does not vary."""

    tensor: torch.Tensor

    @property
    def uniform(self) -> bool:
        """Whether it is one number everywhere."""
        return self.tensor.numel() == 1


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """`yes` where `form` >= 0 (== 0 where `equal`), `no` elsewhere; both of one element, and of the value's rank.

    The factors of `form` have no common divisor, and the first that is not 0 is positive.
    """

    form: Linear
    equal: bool
    yes: torch.Tensor
    no: torch.Tensor


Value = Linear | Grid | Choice


def choice(form: Linear, equal: bool, yes: torch.Tensor, no: torch.Tensor, shape: Sizes) -> Value | None:
    """Return the value of `shape` that is `yes` where `form` >= 0 (== 0 where `equal`), and `no` elsewhere."""
    form = _trimmed(form, shape)
    low, high = _range(form, shape)
    divisor = math.gcd(*form.factors)
    if _same(yes, no) or low > high:
        return settled(Grid(yes), shape)
    if equal:
        if low > 0 or high < 0 or (divisor and form.constant % divisor):
            return settled(Grid(no), shape)
        if low == high:
            return settled(Grid(yes), shape)
    elif low >= 0 or high < 0:
        return settled(Grid(yes if low >= 0 else no), shape)
    # Rounding down: k f + c >= 0 just where f >= -floor(c / k).
    form = Linear(form.constant // divisor, tuple(factor // divisor for factor in form.factors))
    if next(factor for factor in form.factors if factor) < 0:
        turned = tuple(-factor for factor in form.factors)
        if equal:
            form = Linear(-form.constant, turned)
        else:
            form, yes, no = Linear(-form.constant - 1, turned), no, yes
    return Choice(form, equal, yes, no) if _is_small(form) else None


def settled(value: Value, shape: Sizes) -> Value | None:
    """Return `value`, of `shape`, in the one form that it has; None when it is too large to be dealt with."""
    if isinstance(value, Choice):
        return choice(value.form, value.equal, value.yes, value.no, shape)
    if isinstance(value, Linear):
        form = _trimmed(value, shape)
        if not _is_small(form):
            return None
        return form if any(form.factors) else Grid(torch.full((1,) * len(shape), form.constant))
    tensor = value.tensor
    if tensor.dim() != len(shape) or tensor.numel() > MOST_ELEMENTS:
        return None
    if any(size not in (1, static_size(real)) for size, real in zip(tensor.shape, shape, strict=True)):
        return None
    if tensor.numel() < 2:
        return value
    for dim in range(tensor.dim()):
        first = tensor.narrow(dim, 0, 1)
        if tensor.shape[dim] > 1 and _same(first.expand_as(tensor), tensor):
            tensor = first
    if tensor.numel() == 1:
        return Grid(tensor)
    return _as_linear(tensor) or _as_triangle(tensor) or Grid(tensor)


def linear_of(value: Any, rank: int) -> Linear | None:
    """Return a value of the last dimensions among `rank`, or an integer, as a linear form; None when it is none."""
    if type(value) is int:
        return Linear(value, (0,) * rank)
    if isinstance(value, Linear):
        return Linear(value.constant, (0,) * (rank - len(value.factors)) + value.factors)
    if isinstance(value, Grid) and value.uniform and not value.tensor.is_floating_point():
        return Linear(int(value.tensor.item()), (0,) * rank) if value.tensor.dtype != torch.bool else None
    return None


def grid_of(value: Value, shape: Sizes, whole: Sequence[int] = ()) -> torch.Tensor | None:
    """Return the constant that broadcasts to `value`, of `shape`.

    Args:
        value: the value.
        shape: its sizes, which must be numbers along the dimensions along which it varies.
        whole: dimensions of which the constant is to have all of the size, which must be a number.
    """
    if isinstance(value, Grid):
        tensor = value.tensor
    else:
        form = value if isinstance(value, Linear) else value.form
        sizes = [static_size(size) if factor else 1 for size, factor in zip(shape, form.factors, strict=True)]
        if not _fits(sizes):
            return None
        tensor = torch.full((1,) * len(sizes), form.constant)
        for dim, (size, factor) in enumerate(zip(sizes, form.factors, strict=True)):
            assert size is not None
            line = torch.arange(size) * factor
            tensor = tensor + line.reshape([-1 if each == dim else 1 for each in range(len(sizes))])
        if isinstance(value, Choice):
            tensor = torch.where(tensor == 0 if value.equal else tensor >= 0, value.yes, value.no)
    if not whole:
        return tensor
    sizes = [static_size(shape[dim]) if dim in whole else size for dim, size in enumerate(tensor.shape)]
    return tensor.expand([int(size or 0) for size in sizes]) if _fits(sizes) else None


def substitute(value: Value, indices: Sequence[Linear], shape: Sizes) -> Value | None:
    """Return the value of `shape` that is at the index i what `value` is at `indices`(i), which are not negative."""
    rank = len(shape)
    if isinstance(value, Linear):
        return settled(value.at(indices, rank), shape)
    if isinstance(value, Choice):
        yes, no = (each.reshape((1,) * rank) for each in (value.yes, value.no))
        return choice(value.form.at(indices, rank), value.equal, yes, no, shape)
    if value.uniform:
        return Grid(value.tensor.reshape((1,) * rank))
    points: list[torch.Tensor] = []
    for size, index in zip(value.tensor.shape, indices, strict=True):
        at = grid_of(_trimmed(index, shape), shape) if size != 1 else torch.zeros((1,) * rank, dtype=torch.int64)
        if at is None:
            return None
        points.append(at)
    if not _fits(joint(points)):
        return None
    return settled(Grid(value.tensor[tuple(points)]), shape)


def joint(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return the sizes to which all `tensors` broadcast."""
    sizes = [1] * max(tensor.dim() for tensor in tensors)
    for tensor in tensors:
        for dim, size in enumerate(reversed(tensor.shape), 1):
            sizes[-dim] = size if sizes[-dim] == 1 else sizes[-dim]
    return sizes


def varies(value: Value, dim: int) -> bool:
    """Tell whether `value` may differ along `dim`."""
    if isinstance(value, Grid):
        return value.tensor.shape[dim] != 1
    return (value if isinstance(value, Linear) else value.form).factors[dim] != 0


def aligned(value: Value, own: Sizes, shape: Sizes) -> bool:
    """Tell whether an operand of the sizes `own` has, in a result of `shape`, the index that the result has.

    That is where it varies: a symbol that may be 1 broadcasts, and then its index stays 0.
    """
    offset = len(shape) - len(own)
    return all(
        expression(size) == expression(shape[dim + offset]) for dim, size in enumerate(own) if varies(value, dim)
    )


def _trimmed(form: Linear, shape: Sizes) -> Linear:
    """Return `form` without dimensions of size 1, where the index is 0."""
    factors = tuple(0 if static_size(size) == 1 else factor for size, factor in zip(shape, form.factors, strict=True))
    return Linear(form.constant, factors)


def _range(form: Linear, shape: Sizes) -> tuple[float, float]:
    """Return bounds of `form` over all indices of `shape`, the lower above the upper where there are none."""
    low: float = form.constant
    high: float = form.constant
    for size, factor in zip(shape, form.factors, strict=True):
        known = static_size(size)
        if known == 0:
            return math.inf, -math.inf
        if factor:
            end = factor * (math.inf if known is None else known - 1)
            low, high = low + min(end, 0), high + max(end, 0)
    return low, high


def _is_small(form: Linear) -> bool:
    return abs(form.constant) <= _LARGEST_CONSTANT and all(abs(each) <= _LARGEST_FACTOR for each in form.factors)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    # 0.0 equals -0.0, and its reciprocal does not.
    return torch.equal(a, b) and (not a.is_floating_point() or torch.equal(a.signbit(), b.signbit()))


def _fits(sizes: Sequence[int | None]) -> bool:
    total = 1
    for size in sizes:
        if size is None:
            return False
        total *= size
    return total <= MOST_ELEMENTS


def _as_linear(tensor: torch.Tensor) -> Linear | None:
    if tensor.dtype != torch.int64:
        return None
    corner = tensor.flatten()[0]
    factors = [
        int(tensor.select(dim, 1).flatten()[0] - corner) if size > 1 else 0 for dim, size in enumerate(tensor.shape)
    ]
    form = Linear(int(corner), tuple(factors))
    if not _is_small(form):
        return None
    made = grid_of(form, tensor.shape)
    return form if made is not None and torch.equal(made.expand(tensor.shape), tensor) else None


def _as_triangle(tensor: torch.Tensor) -> Choice | None:
    """Return a matrix, of size 1 in dimensions before it, that has one value up to its diagonal and one above."""
    rank = tensor.dim()
    if rank < 2 or tensor.shape[-1] == 1 or tensor.shape[-2] == 1 or tensor.shape[:-2].numel() != 1:
        return None
    if tensor.dtype.is_complex:
        return None
    yes, no = tensor[..., :1, :1], tensor[..., :1, 1:2]
    below = torch.ones(tensor.shape[-2:], dtype=torch.bool).tril()
    if _same(yes, no) or not _same(torch.where(below, yes, no), tensor):
        return None
    return Choice(Linear(0, (0,) * (rank - 2) + (1, -1)), False, yes, no)
