"""Groups: classes that compete with each other, because they lie along the same dimensions of the same constants.

The output channels of a convolution are a group, together with what their removal takes with it: the norm behind, the
inputs of the next layers, a residual stream. So are the heads of an attention and the neurons of a feed-forward block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from burnish.passes.pruning.propagate import Dependencies
from burnish.passes.pruning.units import Numbers

__all__ = ["Group", "Member", "groups_of"]


@dataclass(frozen=True, slots=True)
class Member:
    """A dimension of a constant that classes of a group lie along.

    Attributes:
        constant: its name.
        dim: the dimension.
        place: for every position along it, which class of the group it belongs to; -1: to another group. [size]
    """

    constant: str
    dim: int
    place: Numbers


@dataclass(frozen=True, slots=True)
class Group:
    """Classes that compete.

    Attributes:
        classes: by their numbers, [count].
        members: where they lie.
        width: how many positions a class has along one dimension, at the least: 64 for a head of 64 features.
    """

    classes: Numbers
    members: tuple[Member, ...]
    width: int


def groups_of(dependencies: Dependencies) -> list[Group]:
    """Return the groups of classes that can be removed, in the order of the constants."""
    classes = dependencies.classes
    free = ~classes.are_frozen
    # The dimensions that a class lies along, as the sum of a random number for each of them.
    generator = np.random.default_rng(0)
    keys = np.zeros(classes.count, np.uint64)
    found = []
    for name, dims in dependencies.constants.items():
        for dim, units in dims.items():
            of = classes.of[units]
            if free[of].any():
                found.append((name, dim, of))
                keys[np.unique(of)] += generator.integers(1, 2**63, dtype=np.uint64)
    usable = np.flatnonzero(free & (keys != 0))
    if not len(usable):
        return []
    _, group, sizes = np.unique(keys[usable], return_inverse=True, return_counts=True)
    number = np.full(classes.count, -1, np.int64)
    number[usable] = group
    place = np.zeros(classes.count, np.int64)
    by_group = np.split(usable[np.argsort(group, kind="stable")], np.cumsum(sizes)[:-1])
    for each in by_group:
        place[each] = np.arange(len(each))
    members: list[list[Member]] = [[] for _ in by_group]
    widths = [1 << 62] * len(by_group)
    for name, dim, of in found:
        for index in np.unique(number[of]).tolist():
            if index >= 0:
                mine = number[of] == index
                members[index].append(Member(name, dim, np.where(mine, place[of], -1)))
                widths[index] = min(widths[index], int(np.bincount(place[of][mine]).min()))
    made = zip(by_group, members, widths, strict=True)
    return sorted(
        (Group(numbers, tuple(lying), width) for numbers, lying, width in made), key=lambda each: int(each.classes[0])
    )
