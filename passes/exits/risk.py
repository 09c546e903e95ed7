"""Risk control: whether a loss of accuracy is below a bound, with a chance of error that was asked for.

Learn then Test (Angelopoulos et al., arXiv 2110.01052): settings are tested one after the other, the safest first, each
for whether its risk reaches the bound; those before the first that cannot be told apart from it hold, all together, at
the level of a single test (fixed sequence testing). Samples have to be independent; nothing else is taken for granted.

Losses of 0 and 1 are counted: the p-value is the binomial one. For losses of -1 too it comes from bets against the
setting: wealth that grows as long as losses stay below the bound, for stakes of many sizes, on average (Waudby-Smith
and Ramdas, Estimating Means of Bounded Random Variables by Betting, JRSS B 2024; Ville's inequality).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

__all__ = ["holds_up_to", "p_value"]

Losses = npt.NDArray[np.float64]
# The stakes, as parts of the one that a single loss of 1 would ruin.
_STAKES = np.geomspace(0.01, 0.9, 32)


def p_value(losses: Losses, bound: float) -> float:
    """Return the p-value of "the mean loss is `bound` or more".

    Args:
        losses: of independent samples, -1, 0 or 1, or anything between, [samples].
        bound: above 0 and below 1.
    """
    if np.isin(losses, (0, 1)).all():
        return float(binom.cdf(losses.sum(), len(losses), bound))
    values, limit = (losses + 1) / 2, (bound + 1) / 2
    stakes = _STAKES[:, np.newaxis] / (1 - limit)
    wealth = np.cumsum(np.log1p(stakes * (limit - values)), axis=1)
    largest = wealth.max(axis=0)
    mean = largest + np.log(np.exp(wealth - largest).mean(axis=0))
    return float(min(1.0, np.exp(-mean.max(initial=0.0))))


def holds_up_to(losses: Sequence[Losses], bound: float, delta: float) -> int:
    """Return how many settings, from the first on, have a mean loss below `bound`, all with confidence 1 - `delta`.

    Args:
        losses: of every setting, the safest first, on samples that were not used to choose them.
        bound: as in `p_value`.
        delta: the chance that one of them has not.
    """
    for index, each in enumerate(losses):
        if p_value(each, bound) > delta:
            return index
    return len(losses)
