"""Thresholds: settings of all exits together, from the safest to the cheapest.

A setting minimizes cost + weight * loss on given samples, one exit at a time, exactly, until none changes; weights go
from large to small, and each search starts from the setting before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Answers", "Setting", "settings"]

Array = npt.NDArray[np.float64]
_WEIGHTS = np.logspace(3, -2, 61)
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Answers:
    """What the exits and the model's own head say of samples.

    Attributes:
        scores: of every exit, how sure it is, [exits, samples].
        losses: of every exit, how much worse its answer is than the model's own, from -1 to 1, [exits, samples].
        costs: of leaving by every exit, and by none, as parts of the whole model's, [exits + 1].
    """

    scores: Array
    losses: Array
    costs: Array

    def part(self, samples: npt.NDArray[np.int64]) -> Answers:
        """Return what is said of some of the samples."""
        return Answers(self.scores[:, samples], self.losses[:, samples], self.costs)

    def leave_by(self, setting: Setting) -> npt.NDArray[np.int64]:
        """Return for every sample the exit that it leaves by, the number of exits where by none, [samples]."""
        found = np.full(self.scores.shape[1], len(self.scores))
        for index in reversed(range(len(self.scores))):
            found[self.scores[index] > setting.limits[index]] = index
        return found

    def loss(self, setting: Setting) -> Array:
        """Return how much every sample loses, [samples]."""
        padded = np.concatenate([self.losses, np.zeros((1, self.losses.shape[1]))])
        found: Array = padded[self.leave_by(setting), np.arange(self.losses.shape[1])]
        return found

    def cost(self, setting: Setting) -> float:
        """Return the mean cost of a sample."""
        return float(self.costs[self.leave_by(setting)].mean())


@dataclass(frozen=True, slots=True)
class Setting:
    """A limit for every exit: samples whose score is above it leave there."""

    limits: tuple[float, ...]


def settings(answers: Answers) -> list[Setting]:
    """Return settings, each cheaper than the one before, the first one without exits."""
    limits = np.full(len(answers.scores), np.inf)
    found = [Setting(tuple(limits.tolist()))]
    cost = answers.cost(found[0])
    for weight in _WEIGHTS:
        for _ in range(_ROUNDS):
            before = limits.copy()
            for index in range(len(limits)):
                limits[index] = _best(answers, limits, index, float(weight))
            if (limits == before).all():
                break
        setting = Setting(tuple(limits.tolist()))
        now = answers.cost(setting)
        if now < cost:
            found.append(setting)
            cost = now
    return found


def _best(answers: Answers, limits: Array, index: int, weight: float) -> float:
    """Return the limit of one exit that is best while the others stay."""
    never = limits.copy()
    never[index] = np.inf
    without = Setting(tuple(never.tolist()))
    others = answers.leave_by(without)
    here = np.flatnonzero(others > index)
    if not len(here):
        return float(limits[index])
    stay = answers.costs[others[here]] + weight * answers.loss(without)[here]
    leave = answers.costs[index] + weight * answers.losses[index, here]
    # NaN leaves by no exit: it stands behind all others, and is never among those that leave.
    scores = np.nan_to_num(answers.scores[index, here], nan=-np.inf)
    order = np.argsort(-scores, kind="stable")
    gain = np.concatenate([[0.0], np.cumsum((leave - stay)[order])])
    ordered = np.append(scores[order], -np.inf)
    # Equal scores leave together.
    ends = np.flatnonzero(np.append(True, ordered[:-1] > ordered[1:]))
    best = ends[np.argmin(gain[ends])]
    return np.inf if best == 0 else float(ordered[best])
