"""How often thresholds lose more than was promised, over random splits of samples into calibration and test.

The promise is on the mean over all samples that there could be, which nobody has. Two stand for it. The test part: it
has sampling noise of its own, and where calibration got the easy samples it got the hard ones, so it loses more than
the bound more often than the promise is broken. All samples, those of calibration too: nearer to it, with less noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from burnish.passes.exits.choice import choose
from burnish.passes.exits.thresholds import Answers

__all__ = ["Violations", "violations"]


@dataclass(frozen=True)
class Violations:
    """What happened.

    Attributes:
        on_test: part of the splits in which the test part lost more than the bound.
        on_all: the same for all samples.
        lost: what the test part lost, on average over splits.
        cost: of a sample of the test part, the same.
    """

    on_test: float
    on_all: float
    lost: float
    cost: float


def violations(
    answers: Answers, agreement: Answers, calibrating: int, max_drop: float, delta: float, splits: int
) -> Violations:
    """Choose thresholds as calibrate-exits does, once for every split.

    Args:
        answers: what heads say of all samples, and what is lost by that.
        agreement: the same, where every answer that is not the model's own is lost.
        calibrating: how many samples calibrate; the others test.
        max_drop: the bound of what may be lost.
        delta: the chance that more is lost all the same.
        splits: how many.
    """
    random = np.random.default_rng(0)
    rows = []
    for seed in range(splits):
        order = random.permutation(answers.scores.shape[1])
        first = order[:calibrating]
        setting = choose(answers.part(first), agreement.part(first), max_drop, delta, seed).setting
        test = answers.part(order[calibrating:])
        lost = float(test.loss(setting).mean())
        rows.append((lost > max_drop, answers.loss(setting).mean() > max_drop, lost, test.cost(setting)))
    on_test, on_all, lost, cost = (float(each) for each in np.array(rows, dtype=float).mean(axis=0))
    return Violations(on_test, on_all, lost, cost)
