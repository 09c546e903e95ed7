"""Choice: the cheapest setting of thresholds that holds, searched for as in `thresholds`, tested as in `risk`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from burnish.passes.exits.risk import holds_up_to
from burnish.passes.exits.thresholds import Answers, Setting, settings

__all__ = ["Choice", "choose"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was found, and which of it holds.

    Attributes:
        found: settings, each cheaper than the one before, the first one without exits.
        held: how many of them hold, 1 or more.
        tested: what is said of the samples that they were tested on, and not chosen.
    """

    found: tuple[Setting, ...]
    held: int
    tested: Answers

    @property
    def setting(self) -> Setting:
        """The cheapest one that holds."""
        return self.found[self.held - 1]


def choose(answers: Answers, agreement: Answers, max_drop: float, delta: float, seed: int) -> Choice:
    """Search on one half of the samples, drawn by a seed, and test on the other.

    What is searched by is agreement, also where accuracy is tested: settings that win samples by chance, on the half
    that is searched on, would come first, and be the first ones to fail.

    Args:
        answers: what is said of all samples, and lost by that.
        agreement: the same, where every answer that is not the model's own is lost.
        max_drop: the bound of what may be lost.
        delta: the chance that more is lost all the same.
        seed: of the halves.
    """
    order = np.random.default_rng(seed).permutation(answers.scores.shape[1])
    first, second = np.array_split(order, 2)
    found, tested = settings(agreement.part(first)), answers.part(second)
    # The first setting has no exits: nothing can be lost by it.
    held = 1 + holds_up_to([tested.loss(each) for each in found[1:]], max_drop, delta)
    return Choice(tuple(found), held, tested)
