"""Ranking: which classes of which groups go, given how much each matters.

local: the same part of every group. global: the least important of all groups. isomorphic: the same part of groups of
the same structure together (Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from burnish.passes.pruning.groups import Group
from burnish.passes.pruning.importance import Scores
from burnish.passes.pruning.units import Numbers

__all__ = ["Ranking", "Removal"]

# Multiples of it are spread evenly over the numbers from 0 to 1.
_GOLDEN = (5**0.5 - 1) / 2

Ranking = Literal["local", "global", "isomorphic"]


@dataclass(frozen=True, slots=True)
class Removal:
    """Groups with what decides what goes of them.

    Attributes:
        groups: the groups.
        scores: how much each class matters, [count] each.
        ranking: who competes with whom.
        step: what stays of a group is a multiple of this many positions.
        is_exact: also of groups of less than two steps; else these take steps of half what they have, or less.
        most: the part of each group that may go.
    """

    groups: Sequence[Group]
    scores: Sequence[Scores]
    ranking: Ranking
    step: int
    is_exact: bool
    most: Sequence[float]

    def classes(self, ratio: float) -> list[Numbers]:
        """Return the classes to remove of each group, by their places in it, when a part `ratio` of all is to go."""
        counts = self._counts(ratio)
        found = []
        several = zip(self.groups, self.scores, counts, self.most, strict=True)
        for index, (group, score, count, most) in enumerate(several):
            size = len(group.classes)
            least = max(size - int(size * most + 1e-9), 1)
            stays = max(size - count, least)
            step = self._step(group)
            # Up where a number was asked for, or little would be left; else up or down, so that of groups of one size
            # some are cut further, and all together leave what the ratio leaves.
            up = int(step * ((0.5 + index * _GOLDEN) % 1))
            rounded = -(-stays // step) * step if self.is_exact else max(step, (stays + up) // step * step)
            rounded = max(rounded, -(-least // step) * step)
            found.append(np.argsort(score, kind="stable")[: size - min(rounded, size)])
        return found

    def _step(self, group: Group) -> int:
        """Return of how many classes of a group what stays should be a multiple."""
        step = self.step
        if not self.is_exact:
            while step > 1 and step * 2 > len(group.classes) * group.width:
                step //= 2
        return step // int(np.gcd(step, group.width))

    def _counts(self, ratio: float) -> list[int]:
        """Return how many classes of each group are among the least important."""
        if self.ranking == "local":
            return [int(len(group.classes) * ratio + 1e-9) for group in self.groups]
        rivals = defaultdict(list)
        for index, group in enumerate(self.groups):
            rivals[group.structure if self.ranking == "isomorphic" else ()].append(index)
        counts = [0] * len(self.groups)
        for several in rivals.values():
            owner = np.repeat(several, [len(self.scores[index]) for index in several])
            order = np.argsort(np.concatenate([self.scores[index] for index in several]), kind="stable")
            gone = np.bincount(owner[order[: int(len(order) * ratio + 1e-9)]], minlength=len(counts))
            for index in several:
                counts[index] = int(gone[index])
        return counts
