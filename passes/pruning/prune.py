"""prune: whole channels, heads and neurons are removed, and the Program becomes smaller.

What has to go together is found by `propagate`; classes of a group, or of several, compete by `importance`; `shrink`
writes the smaller Program. Inputs and outputs keep their sizes.

Not handled: groups that no constant has a part in; what `propagate` names as frozen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from burnish.compiler.context import Context
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.pruning.gradients import taylor
from burnish.passes.pruning.groups import Group, Kind, groups_of
from burnish.passes.pruning.importance import Importance, Scores, importance_of
from burnish.passes.pruning.masks import masks_of
from burnish.passes.pruning.propagate import Dependencies, propagate
from burnish.passes.pruning.ranking import Ranking, Removal
from burnish.passes.pruning.shrink import shrink, with_something_left
from burnish.passes.pruning.targets import Goal, Measure, reached
from burnish.passes.pruning.units import Flags

__all__ = ["Prune"]

_GOALS: tuple[Measure, ...] = ("flops", "params", "latency")


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove the least important channels, heads and neurons.

    Attributes:
        ratio: the part of them to remove, from 0 to 1; .5 where no target is given.
        flops: a target: the part of the FLOPs that is to be left.
        params: a target: the part of the parameters that is to be left.
        latency: a target: the part of the time of a call on the backend that is to be left.
        importance: l1, l2, batch-norm, lamp, fpgm, taylor (which needs data) or random: see `importance`.
        ranking: local: the same part of every group; global: the least important of all groups; isomorphic: the same
            part of all groups of one structure.
        round_to: what stays of a group is a multiple of this many positions; where it is not given, of what the target
            likes, in groups wide enough.
        kinds: what may go: channels of convolutions, heads of attention, neurons of other layers, and features of a
            stream that norms read, whose statistics are then those of the others.
        keep: patterns as in a shell, `*.head`, of constants, nodes and modules: groups with one of them stay.
        limits: patterns with the part of a group that may go at the most: `layer4.*=0.3`.
    """

    name: ClassVar[str] = "prune"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    ratio: float | None = None
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    importance: Importance = "l2"
    ranking: Ranking = "local"
    round_to: int | None = None
    kinds: tuple[Kind, ...] = ("channels", "heads", "neurons")
    keep: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        goals = self._goals()
        if len(goals) + (self.ratio is not None) > 1:
            raise OptionError("pass 'prune': give one of ratio, flops, params and latency")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise OptionError(f"pass 'prune': option 'ratio' must be from 0 to less than 1, but is {self.ratio}")
        if goals and not 0 < goals[0].part <= 1:
            raise OptionError(
                f"pass 'prune': option {goals[0].measure!r} must be a part above 0, to 1, of what there is, but is"
                f" {goals[0].part}"
            )
        if not self.kinds:
            raise OptionError("pass 'prune': option 'kinds' is empty: give channels, heads, neurons or features")
        if self.round_to is not None and self.round_to < 1:
            raise OptionError(f"pass 'prune': option 'round_to' must be 1 or more, but is {self.round_to}")
        for text in self.limits:
            _limit(text)

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: a pattern matches nothing, or a target cannot be reached.
            InputError: taylor has no data, or a target no sample inputs.
        """
        goal = next(iter(self._goals()), None)
        limits = [_limit(text) for text in self.limits]
        dependencies = self._propagate(program)
        every = [group for group in groups_of(program, dependencies) if group.kind in self.kinds]
        most = self._most(every, limits)
        groups = [group for group, part in zip(every, most, strict=True) if part > 0]
        for operator, times in dependencies.unknown.items():
            context.notes.append(f"prune has no rule for {operator} ({times} times): what it reads keeps its size")
        if not groups:
            if goal is not None and goal.part < 1:
                raise OptionError(f"pass 'prune': {goal.measure}={goal.part:g} cannot be reached: nothing can go")
            context.notes.append("prune found nothing to remove")
            return
        removal = Removal(
            groups,
            self._scores(program, groups, context),
            self.ranking,
            context.target.alignment if self.round_to is None else self.round_to,
            self.round_to is not None,
            [part for part in most if part > 0],
        )
        if masks_of(program):
            context.notes.append(
                "prune cuts masks with their weights: of an N:M pattern little is left; put sparsify behind prune"
            )
        ratio = 0.5 if self.ratio is None else self.ratio
        if goal is not None:
            ratio, part = reached(goal, program, context, lambda each: self._smaller(program, removal, each))
            asked = f"{goal.part:.1%} were asked for"
            context.notes.append(f"prune with ratio {ratio:.3f} leaves {part:.1%} of the {goal.measure}; {asked}")
        self._remove(rewriter, dependencies, removal, ratio)
        _tell(groups, removal, ratio, context)

    def _propagate(self, program: Program) -> Dependencies:
        return propagate(program, features="features" in self.kinds)

    def _goals(self) -> list[Goal]:
        return [Goal(name, getattr(self, name)) for name in _GOALS if getattr(self, name) is not None]

    def _most(self, groups: list[Group], limits: list[tuple[str, float]]) -> list[float]:
        """Return the part of each group that may go."""
        patterns = [*((pattern, 0.0) for pattern in self.keep), *limits]
        names = [group.names for group in groups] if patterns else [frozenset[str]()] * len(groups)
        for pattern, _ in patterns:
            if not any(fnmatchcase(name, pattern) for each in names for name in each):
                constants = sorted({member.constant for group in groups for member in group.members})
                some = ", ".join(constants[:5]) or "none"
                raise OptionError(f"pass 'prune': nothing to prune matches {pattern!r}: there are {some}")
        return [
            min([1.0, *(part for pattern, part in patterns if any(fnmatchcase(name, pattern) for name in each))])
            for each in names
        ]

    def _scores(self, program: Program, groups: list[Group], context: Context) -> list[Scores]:
        if self.importance == "taylor":
            return taylor(program, groups, context)
        if self.importance == "batch-norm" and not any(
            "batch_norm" in use.operator for group in groups for member in group.members for use in member.uses
        ):
            raise OptionError(
                "pass 'prune': 'batch-norm' needs batch norms, and what can go has none: the model is without, or"
                " fold-batch-norm came before prune"
            )
        constants = {
            name: program.constants[name] * program.constants[mask] for name, mask in masks_of(program).items()
        }
        constants = {**program.constants, **constants}
        for name in {member.constant for group in groups for member in group.members if member.is_weight}:
            if not bool(constants[name].isfinite().all()):
                raise InputError(f"pass 'prune': constant {name!r} holds NaN or infinity: nothing can be ranked by it")
        return [importance_of(each, constants, self.importance, context.seed) for each in groups]

    def _smaller(self, program: Program, removal: Removal, ratio: float) -> Program:
        """Return a Program of which a part has gone."""
        copy = program.copy()
        self._remove(Rewriter(copy, self.name), self._propagate(copy), removal, ratio)
        return copy

    def _remove(self, rewriter: Rewriter, dependencies: Dependencies, removal: Removal, ratio: float) -> None:
        kept: Flags = np.ones(dependencies.classes.count, np.bool_)
        for group, removed in zip(removal.groups, removal.classes(ratio), strict=True):
            kept[group.classes[removed]] = False
        kept = with_something_left(dependencies, kept)
        if not kept.all():
            with rewriter.rewrite("prune"):
                shrink(rewriter, dependencies, kept)


def _limit(text: str) -> tuple[str, float]:
    pattern, sign, number = text.rpartition("=")
    try:
        part = float(number)
    except ValueError:
        part = -1.0
    if not sign or not 0 <= part <= 1:
        raise OptionError(
            f"pass 'prune': option 'limits' takes patterns with a part from 0 to 1, \"layer4.*=0.3\", but got {text!r}"
        )
    return pattern, part


def _tell(groups: list[Group], removal: Removal, ratio: float, context: Context) -> None:
    """Note how many classes of each kind went."""
    total, gone = Counter[Kind](), Counter[Kind]()
    for group, removed in zip(groups, removal.classes(ratio), strict=True):
        total[group.kind] += len(group.classes)
        gone[group.kind] += len(removed)
    parts = ", ".join(f"{gone[kind]} of {total[kind]} {kind}" for kind in total)
    context.notes.append(f"prune removed {parts}")
