"""The best cuts of one order of the units, exactly: dynamic programming over prefixes.

The seconds of a stage are the difference of two prefix sums and what crosses the cut at its end. So for a stage that
ends at a place, of all its starts that can be reached the last one is best, and a bottleneck is reached or not in time
linear in units and stages. The least bottleneck is found by bisection, each time down to that of the cuts found.

Not handled: other orders; see `search`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from burnish.passes.partition.problem import NONE, Array, Problem

__all__ = ["Order"]

Places = npt.NDArray[np.int64]
_CLOSE = 1e-10
# What an order has to gain to be looked at closer.
_BETTER = 1e-6
_STEP = 1e-3


class Order:
    """Units in a topological order; a place p stands behind the first p of them.

    Args:
        problem: the units.
        units: all of them, in an order.
    """

    def __init__(self, problem: Problem, units: Sequence[int]) -> None:
        self.problem, self.units = problem, list(units)
        self.count = len(self.units)
        self.sums = np.concatenate(
            [np.zeros((len(problem.memory), 1)), np.cumsum(problem.times[:, self.units], axis=1)], axis=1
        )
        fastest = problem.times[sorted(set(problem.devices))][:, self.units].min(axis=0)
        self.fastest = np.concatenate([[0.0], np.cumsum(fastest)])
        self.crossing = self._crossing()
        self.send = np.where(
            self.crossing > 0, problem.latency + self.crossing / problem.bandwidth, 0.0
        )  # fmt: skip
        self.slowest = float(self.sums[:, -1].max() + self.send.max())
        self.first = {kind: self._first_starts(problem.memory[kind]) for kind in set(problem.devices)}

    def least_bottleneck(self, bound: float, below: float) -> list[int] | None:
        """Return the ends of the stages whose slowest is fastest; None where there are none, or none below a limit.

        Args:
            bound: seconds that no plan is below.
            below: seconds that the slowest stage has to be below.
        """
        best = self._ends(min(self.slowest, below * (1 - _BETTER)), self.first)
        if best is None:
            return None
        high, low, step = self.bottleneck(best), bound, _STEP
        while high - low > _CLOSE * high:
            # The bound is often near, so that steps away from it, each twice the one before, come close first.
            middle = min(bound * (1 + step), (low + high) / 2)
            found = self._ends(middle, self.first)
            if found is None:
                low, step = middle, 2 * step
            else:
                best, high = found, min(middle, self.bottleneck(found))
                step = np.inf
        return best

    def least_latency(self) -> list[int] | None:
        """Return the ends of the stages that take the least time one after the other."""
        total = np.where(np.arange(self.count + 1) == 0, 0.0, np.inf)
        choices: list[tuple[int, Places]] = []
        for kind in self.problem.devices:
            sums = self.sums[kind]
            start = _windowed_argmin(total - sums, self.first[kind])
            choices.append((0, start))
            value = (total - sums)[start] + sums + self.send
            total = np.where(start < np.arange(self.count + 1), value, np.inf)
        return None if np.isinf(total[-1]) else self._back(choices)

    def least_memory(self) -> list[int] | None:
        """Return the ends of the stages of which the largest needs the least memory."""
        found = self._ends(self.slowest, self.first)
        if found is None:
            return None
        best, low = found, 0.0
        high = self._memory(best)
        while high - low > max(1.0, _CLOSE * high):
            middle = (low + high) / 2
            limits = {kind: np.maximum(self._first_starts(middle), self.first[kind]) for kind in self.first}
            found = self._ends(self.slowest, limits)
            if found is None:
                low = middle
            else:
                best, high = found, min(middle, self._memory(found))
        return best

    def bottleneck(self, ends: Sequence[int]) -> float:
        """Return the seconds of the slowest stage."""
        starts = [0, *ends[:-1]]
        return max(
            float(self.sums[kind, end] - self.sums[kind, start] + self.send[end])
            for kind, start, end in zip(self.problem.devices, starts, ends, strict=True)
        )

    def stages(self, ends: Sequence[int]) -> list[list[int]]:
        """Return the units by stage."""
        return [self.units[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _ends(self, bottleneck: float, first: dict[int, Places]) -> list[int] | None:
        """Return ends of stages that are all as fast as this; None where there are none."""
        stages = len(self.problem.devices)
        slack = bottleneck * (1 + _CLOSE)
        # Before a place stand no more units than so many stages can take, and behind it no more than the others can.
        number = np.arange(1, stages + 1)
        lows = np.maximum(np.searchsorted(self.fastest, self.fastest[-1] - (stages - number) * slack), number)
        highs = np.searchsorted(self.fastest, number * slack, side="right") - 1
        lows[-1], highs[-1] = self.count, self.count
        last, low, high = np.zeros(1, np.int64), 0, 0
        choices: list[tuple[int, Places]] = []
        for kind, next_low, next_high in zip(self.problem.devices, lows.tolist(), highs.tolist(), strict=True):
            if next_low > next_high or next_low <= low:
                return None
            places = np.arange(next_low, next_high + 1)
            # The last place before each that is reached.
            start = last[np.minimum(places - 1, high) - low]
            choices.append((next_low, start))
            sums = self.sums[kind]
            seconds = sums[next_low : next_high + 1] - sums[start] + self.send[next_low : next_high + 1]
            reached = (start >= first[kind][next_low : next_high + 1]) & (start >= 0) & (seconds <= slack)
            last = np.maximum.accumulate(np.where(reached, places, -1))
            low, high = next_low, next_high
        return self._back(choices) if last[-1] == self.count else None

    def _back(self, choices: Sequence[tuple[int, Places]]) -> list[int]:
        ends = [self.count]
        for low, start in reversed(choices[1:]):
            ends.append(int(start[ends[-1] - low]))
        return ends[::-1]

    def _crossing(self) -> Array:
        """Return the bytes that cross at every place."""
        position = np.full(self.count + 1, self.count)
        position[self.units] = np.arange(self.count)
        change = np.zeros(self.count + 2)
        for value in self.problem.values:
            last = max((int(position[each]) for each in value.readers), default=-1)
            made = int(position[value.source]) + 1 if value.source >= 0 else 0
            if last >= made:
                change[made] += value.bytes
                change[last + 1] -= value.bytes
        # What is kept for the outputs alone crosses no cut behind the last stage, and nothing one before the first.
        found: Array = np.cumsum(change)[: self.count + 1]
        found = np.where(found > NONE, found, 0.0)
        found[-1] = 0.0
        return found

    def _first_starts(self, memory: float) -> Places:
        """Return for every place the first one that a stage which ends there and fits may start at."""
        starts = np.zeros(self.count + 1, np.int64)
        if np.isinf(memory):
            return starts
        problem, used = self.problem, [0] * len(self.problem.weights)
        largest: deque[int] = deque()
        weights, start = 0.0, 0
        for end in range(1, self.count + 1):
            unit = self.units[end - 1]
            for each in problem.weights_of[unit]:
                weights += problem.weights[each].bytes * (used[each] == 0)
                used[each] += 1
            while largest and problem.working[self.units[largest[-1]]] <= problem.working[unit]:
                largest.pop()
            largest.append(end - 1)
            while start < end and weights + problem.working[self.units[largest[0]]] > memory:
                for each in problem.weights_of[self.units[start]]:
                    used[each] -= 1
                    weights -= problem.weights[each].bytes * (used[each] == 0)
                start += 1
                while largest and largest[0] < start:
                    largest.popleft()
                if not largest:
                    break
            starts[end] = start
        return starts

    def _memory(self, ends: Sequence[int]) -> float:
        return max(self.problem.memory_of(stage) for stage in self.stages(ends))


def _windowed_argmin(values: Array, first: Places) -> Places:
    """Return for every place p the least of the values from first[p] to p - 1, by its place; p where there are none."""
    count = len(values)
    found = np.arange(count)
    if not first.any():
        least = np.minimum.accumulate(values)
        is_less = np.concatenate([[True], values[1:] < least[:-1]])
        found[1:] = np.maximum.accumulate(np.where(is_less, found, 0))[:-1]
        return np.where(np.isfinite(values[found]), found, np.arange(count))
    waiting: deque[int] = deque()
    for place in range(1, count):
        while waiting and values[waiting[-1]] >= values[place - 1]:
            waiting.pop()
        waiting.append(place - 1)
        while waiting and waiting[0] < first[place]:
            waiting.popleft()
        if waiting and np.isfinite(values[waiting[0]]):
            found[place] = waiting[0]
    return found
