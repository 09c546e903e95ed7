"""Sizes of inputs, by name, turned into values of the shape symbols.

Not handled: an input whose size is anything but a symbol, or a linear expression of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import sympy
import torch

from burnish.compiler.cost_numbers import Number, Shape, evaluated, number, shape_of
from burnish.compiler.errors import InputError

__all__ = ["Sizes", "bindings", "size_of"]

Sizes: TypeAlias = Mapping[str, "torch.Tensor | Sequence[int] | Number"]


def size_of(value: Any) -> Shape | Number:
    """Return the shape of a tensor, or a number itself."""
    if isinstance(value, torch.Tensor):
        return shape_of(value)
    # A number that is no size (a float, a flag) binds no symbol.
    return number(value) if isinstance(value, (int, torch.SymInt)) else 0


def bindings(wanted: Mapping[str, Shape | Number], given: Sizes) -> dict[Any, int]:
    """Return the size of every symbol in the shapes of the inputs."""
    sizes: dict[Any, int] = {}
    for name, value in given.items():
        if name not in wanted:
            raise InputError(f"there is no input {name!r}: the inputs are {', '.join(wanted)}")
        expected = wanted[name]
        shape = size_of(value) if isinstance(value, torch.Tensor) else value
        pairs: list[tuple[Number, Any]]
        if isinstance(expected, tuple):
            if not isinstance(shape, Sequence) or len(shape) != len(expected):
                raise InputError(f"input {name!r} must have {len(expected)} dimensions, but is given {shape}")
            pairs = list(zip(expected, shape, strict=True))
        else:
            if isinstance(shape, Sequence):
                raise InputError(f"input {name!r} is a number, but is given the shape {tuple(shape)}")
            pairs = [(expected, shape)]
        for size, actual in pairs:
            _bind(name, size, actual, sizes, is_size=isinstance(expected, tuple))
    for name, shape in wanted.items():
        missing = {symbol for each in (shape if isinstance(shape, tuple) else (shape,)) for symbol in _symbols(each)}
        if missing - sizes.keys():
            raise InputError(f"input {name!r} has dynamic sizes: give its shape")
    return sizes


def _symbols(value: Number) -> set[Any]:
    return set() if isinstance(value, int) else value.free_symbols


def _bind(name: str, size: Number, actual: int, sizes: dict[Any, int], is_size: bool) -> None:
    known = evaluated(size, sizes)
    if isinstance(known, int):
        if is_size and known != actual:
            raise InputError(f"input {name!r} has a size {known} where {actual} is given")
        return
    # A size is a symbol, or a multiple and a sum of one (from a derived Dim).
    symbols = _symbols(known)
    solutions = sympy.solve(known - actual, *symbols) if len(symbols) == 1 else []
    whole = [solution for solution in solutions if solution.is_Integer]
    if len(whole) != 1:
        raise InputError(f"input {name!r}: {actual} is not a possible size where {known} is expected")
    sizes[symbols.pop()] = int(whole[0])
