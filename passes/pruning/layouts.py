"""Layouts: which dimensions of a value hold units, and how views, permutations and windows move them.

A block is an array of units over some dimensions of a value. Most blocks have one dimension, whose positions can be
removed. A view that splits a dimension, channels into (groups, channels of a group) or features into (heads, features
of a head), makes a block of several: there whole slices along one of them can be removed, and what reads the value, or
in the end `propagate`, says along which. A view that merges dimensions makes one of them again. Dimensions in no block
stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.compiler.sizes import expression
from burnish.passes.pruning.units import Numbers, Units

__all__ = ["Block", "Layout", "factors"]


@dataclass(frozen=True, slots=True)
class Block:
    """Units of the positions over some dimensions, whose order is that of the array's axes."""

    dims: tuple[int, ...]
    units: Numbers


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of a value; no two share a dimension."""

    blocks: tuple[Block, ...] = ()

    @staticmethod
    def of(blocks: Iterable[Block]) -> Layout:
        """Return the layout of `blocks`, without axes along which nothing changes: these could not be removed."""
        found = []
        for block in blocks:
            dims = block.dims
            units: Numbers = block.units
            if not units.size:
                continue
            for axis in reversed(range(len(dims))):
                if units.shape[axis] == 1 or bool((units == units.take([0], axis)).all()):
                    dims, units = dims[:axis] + dims[axis + 1 :], np.take(units, 0, axis)
            if dims:
                found.append(Block(dims, units))
        return Layout(tuple(found))

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions that hold units."""
        return frozenset(dim for block in self.blocks for dim in block.dims)

    def block(self, dim: int) -> Block | None:
        """Return the block that `dim` belongs to."""
        return next((block for block in self.blocks if dim in block.dims), None)

    def along(self, dim: int, units: Units) -> Numbers | None:
        """Return the units along `dim` alone, [size]; in a block of several dimensions its slices are tied for that."""
        block = self.block(dim)
        if block is None:
            return None
        found: Numbers = block.units
        for axis in reversed([axis for axis, each in enumerate(block.dims) if each != dim]):
            units.tie_along(found, axis)
            found = np.take(found, 0, axis)
        return found

    def narrowed(self, dim: int, units: Units) -> Layout:
        """Return the layout whose block with `dim` has no other dimension."""
        found = self.along(dim, units)
        if found is None:
            return self
        return Layout((*(block for block in self.blocks if dim not in block.dims), Block((dim,), found)))

    def freeze(self, units: Units, reason: str, dims: Iterable[int] | None = None) -> None:
        """Freeze every block that has one of `dims`, or every block."""
        wanted = None if dims is None else set(dims)
        for block in self.blocks:
            if wanted is None or not wanted.isdisjoint(block.dims):
                units.freeze(block.units, reason)

    def without(self, dims: Iterable[int]) -> Layout:
        """Return the layout without the blocks that have one of `dims`."""
        gone = set(dims)
        return Layout(tuple(block for block in self.blocks if gone.isdisjoint(block.dims)))

    def moved(self, places: dict[int, int]) -> Layout:
        """Return the layout after dimensions went to other `places`; blocks of others, which are gone, are left out."""
        return Layout(
            tuple(
                Block(tuple(places[dim] for dim in block.dims), block.units)
                for block in self.blocks
                if all(dim in places for dim in block.dims)
            )
        )

    def window(self, dim: int, index: slice | Numbers, units: Units) -> Layout:
        """Return the layout of a part along `dim`; what differs along it in a block of several is tied."""
        found = []
        for block in self.blocks:
            if dim in block.dims:
                axis = block.dims.index(dim)
                if len(block.dims) > 1:
                    units.tie_along(block.units, axis)
                part = np.moveaxis(np.moveaxis(block.units, axis, 0)[index], 0, axis)
                if part.shape[axis] == 1 and len(block.dims) == 1:
                    units.freeze(part, "a part of one position cannot do without it")
                found.append(Block(block.dims, part))
            else:
                found.append(block)
        # An empty part has no units.
        return Layout(tuple(block for block in found if block.units.size))

    def reshaped(self, before: Sequence[Any], after: Sequence[Any], units: Units) -> Layout:
        """Return the layout of a value after a view from sizes `before` to sizes `after`."""
        steps = factors(before, after)
        same = {old[0]: new[0] for old, new in steps if len(old) == len(new) == 1}
        changes = [(old, new) for old, new in steps if not (len(old) == len(new) == 1)]
        blocks: list[Block] = []
        for block in self.blocks:
            met = [(old, new) for old, new in changes if not set(old).isdisjoint(block.dims)]
            if not met:
                blocks.append(Block(tuple(same[dim] for dim in block.dims), block.units))
            elif len(met) > 1 or self._is_shared(met[0][0]) or not _static(before, met[0][0], after, met[0][1]):
                units.freeze(block.units, "a view takes it apart with another dimension")
            else:
                blocks.append(_viewed(block, before, after, *met[0], same))
        return Layout.of(blocks)

    def _is_shared(self, dims: Sequence[int]) -> bool:
        return sum(not set(dims).isdisjoint(block.dims) for block in self.blocks) > 1


def _viewed(
    block: Block, before: Sequence[int], after: Sequence[int], old: list[int], new: list[int], same: dict[int, int]
) -> Block:
    """Return a block after dimensions `old` have become `new`; its other dimensions only have other numbers."""
    outer = [dim for dim in block.dims if dim not in old]
    found = block.units.transpose([block.dims.index(dim) for dim in (*sorted(set(old) & set(block.dims)), *outer)])
    rest = [before[dim] for dim in outer]
    narrow = [before[dim] if dim in block.dims else 1 for dim in old]
    full = np.broadcast_to(found.reshape([*narrow, *rest]), [*(before[dim] for dim in old), *rest])
    moved = full.reshape([*(after[dim] for dim in new), *rest])
    return Block((*new, *(same[dim] for dim in outer)), moved)


def factors(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """Return which dimensions of a view become which, in steps as small as possible, from the last to the first.

    What stands before a dynamic size that is not the same on both sides is one step.
    """
    old, new = len(before), len(after)
    steps = []
    while old or new:
        end, stop = old, new
        if old and new and expression(before[old - 1]) == expression(after[new - 1]):
            old, new = old - 1, new - 1
        else:
            left = right = 1
            while (old or new) and ((old, new) == (end, stop) or left != right):
                grows = bool(old) and (left <= right or not new)
                size = before[old - 1] if grows else after[new - 1]
                if not isinstance(size, int):
                    old = new = 0
                elif grows:
                    old, left = old - 1, left * size
                else:
                    new, right = new - 1, right * size
        steps.append((list(range(old, end)), list(range(new, stop))))
    return steps


def _static(before: Sequence[Any], old: list[int], after: Sequence[Any], new: list[int]) -> bool:
    sizes = [*(before[dim] for dim in old), *(after[dim] for dim in new)]
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes[: len(old)]) == math.prod(sizes[len(old) :])
