"""Groups: classes that compete with each other, because they lie along the same dimensions of the same constants.

The output channels of a convolution are a group, together with what their removal takes with it: the norm behind, the
inputs of the next layers, a residual stream. So are the heads of an attention and the neurons of a feed-forward block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from burnish.compiler.constant_uses import Use, is_parameter, uses_of
from burnish.compiler.graphs import name_of
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of
from burnish.passes.pruning.propagate import Dependencies
from burnish.passes.pruning.units import Classes, Flags, Numbers

__all__ = ["Group", "Kind", "Member", "groups_of"]

Kind = Literal["channels", "heads", "neurons", "features"]
"""Of convolutions, of attention, of other layers, and of a stream that norms of features read."""


@dataclass(frozen=True, slots=True)
class Member:
    """A dimension of a constant that classes of a group lie along.

    Attributes:
        constant: its name.
        dim: the dimension.
        place: for every position along it, which class of the group it belongs to; -1: to another group. [size]
        uses: who reads the constant.
        is_weight: it is a weight of two dimensions or more, not a bias or a number for each channel.
    """

    constant: str
    dim: int
    place: Numbers
    uses: tuple[Use, ...]
    is_weight: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Classes that compete.

    Attributes:
        classes: by their numbers, [count].
        members: where they lie.
        width: how many positions a class has along one dimension, at the least: 64 for a head of 64 features.
        kind: what they are.
    """

    classes: Numbers
    members: tuple[Member, ...]
    width: int
    kind: Kind

    @property
    def names(self) -> frozenset[str]:
        """What patterns of options match: its constants, the nodes that read them, and their modules."""
        nodes = {use.node for member in self.members for use in member.uses}
        modules = {origin.module for node in nodes if (found := provenance_of(node)) for origin in found.origins}
        constants = {member.constant for member in self.members}
        return frozenset(constants | {name_of(node) for node in nodes} | modules)

    @property
    def structure(self) -> tuple[object, ...]:
        """What groups have in common that are cut alike: kind, and the operators, arguments and dimensions.

        Isomorphic groups: Fang et al., Isomorphic Pruning for Vision Models (ECCV 2024).
        """
        parts = {(use.operator, use.slot, member.dim) for member in self.members for use in member.uses}
        return (self.kind, *sorted(parts))


def groups_of(program: Program, dependencies: Dependencies) -> list[Group]:
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
    uses = {name: tuple(used) for name, used in uses_of(program).items()}
    for name, dim, of in found:
        used = uses.get(name, ())
        value = program.constants[name]
        is_weight = value.dim() > 1 and value.is_floating_point() and is_parameter(list(used))
        for index in np.unique(number[of]).tolist():
            if index >= 0:
                mine = number[of] == index
                members[index].append(Member(name, dim, np.where(mine, place[of], -1), used, is_weight))
                widths[index] = min(widths[index], int(np.bincount(place[of][mine]).min()))
    made = zip(by_group, members, widths, strict=True)
    heads, features = (_flags(each, classes) for each in (dependencies.heads, dependencies.features))
    groups = [
        Group(numbers, tuple(lying), width, _kind(numbers, lying, heads, features)) for numbers, lying, width in made
    ]
    return sorted(groups, key=lambda each: int(each.classes[0]))


def _flags(units: list[Numbers], classes: Classes) -> Flags:
    """Return for every class whether some of these units are in it, [classes]."""
    found = np.zeros(classes.count, np.bool_)
    for each in units:
        found[classes.of[each]] = True
    return found


def _kind(classes: Numbers, members: list[Member], heads: Flags, features: Flags) -> Kind:
    if features[classes].any():
        return "features"
    if heads[classes].any():
        return "heads"
    return "channels" if any("conv" in use.operator for each in members for use in each.uses) else "neurons"
