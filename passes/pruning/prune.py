"""prune: whole channels, heads and neurons are removed, and the Program becomes smaller.

What has to go together is found by `propagate`; classes of a group compete with each other by `importance`; `shrink`
writes the smaller Program. Inputs and outputs keep their sizes. Features that a layer norm takes statistics over stay.

Not handled: groups that no constant has a part in; what `propagate` names as frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.pruning.groups import Group, groups_of
from burnish.passes.pruning.importance import Importance, Scores, importance_of
from burnish.passes.pruning.propagate import propagate
from burnish.passes.pruning.shrink import shrink, with_something_left
from burnish.passes.pruning.units import Numbers

__all__ = ["Prune"]


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove the least important channels, heads and neurons.

    Attributes:
        ratio: the part of them to remove, from 0 to 1.
        importance: l1 or l2, the norm of all weights of a channel; or random, as a control.
        ranking: local: the same part of every group; global: the least important of all groups.
        round_to: what stays of a group is a multiple of this many positions.
        keep: patterns as in a shell, `*.head`, of constants; groups that reach into one stay as they are.
    """

    name: ClassVar[str] = "prune"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    ratio: float = 0.5
    importance: Importance = "l2"
    ranking: Literal["local", "global"] = "local"
    round_to: int = 1
    keep: tuple[str, ...] = ()

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: an option has an unusable value, or a pattern of `keep` matches nothing.
        """
        if not 0 <= self.ratio < 1:
            raise OptionError(f"pass 'prune': option 'ratio' must be from 0 to less than 1, but is {self.ratio}")
        if self.round_to < 1:
            raise OptionError(f"pass 'prune': option 'round_to' must be 1 or more, but is {self.round_to}")
        dependencies = propagate(program)
        groups = self._wanted(groups_of(dependencies))
        for operator, times in dependencies.unknown.items():
            context.notes.append(f"prune has no rule for {operator} ({times} times): what it reads keeps its size")
        if not groups:
            context.notes.append("prune found nothing to remove")
            return
        scores = [importance_of(each, program.constants, self.importance, context.seed) for each in groups]
        kept = np.ones(dependencies.classes.count, np.bool_)
        for group, removed in zip(groups, self._removed(groups, scores), strict=True):
            kept[group.classes[removed]] = False
        kept = with_something_left(dependencies, kept)
        if not kept.all():
            with rewriter.rewrite("prune"):
                shrink(rewriter, dependencies, kept)

    def _wanted(self, groups: list[Group]) -> list[Group]:
        """Return the groups that no pattern keeps."""
        names = {member.constant for group in groups for member in group.members}
        unknown = [pattern for pattern in self.keep if not any(fnmatchcase(name, pattern) for name in names)]
        if unknown:
            some = ", ".join(sorted(names)[:5]) or "none"
            raise OptionError(f"pass 'prune': no constant to prune matches {unknown[0]!r}: there are {some}")
        return [
            group
            for group in groups
            if not any(fnmatchcase(member.constant, pattern) for member in group.members for pattern in self.keep)
        ]

    def _removed(self, groups: list[Group], scores: list[Scores]) -> list[Numbers]:
        """Return the classes of each group to remove, the least important ones, by their places in the group."""
        if self.ranking == "local":
            counts = [int(len(group.classes) * self.ratio) for group in groups]
        else:
            every = np.sort(np.concatenate(scores))
            threshold = every[min(int(len(every) * self.ratio), len(every) - 1)]
            counts = [int((each < threshold).sum()) for each in scores]
        found = []
        for group, score, count in zip(groups, scores, counts, strict=True):
            stays = len(group.classes) - count
            step = self.round_to // np.gcd(self.round_to, group.width)
            stays = min(-(-max(stays, 1) // step) * step, len(group.classes))
            found.append(np.argsort(score, kind="stable")[: len(group.classes) - stays])
        return found
