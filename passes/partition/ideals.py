"""The best partition over all orders at once, exactly: dynamic programming over sets that are closed downwards.

What stands before a cut is an ideal of the graph: with a unit all that it depends on. A partition into stages is a
chain of ideals, each a proper part of the next. Networks are narrow, so that there are often few: as many as places in
a chain, times what branches offer side by side.

Not handled: more ideals than can be compared in seconds; see `search`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from burnish.passes.partition.problem import Array, Problem

__all__ = ["best_chain", "ideals"]

Bits = npt.NDArray[np.uint64]
Members = npt.NDArray[np.bool_]
_WORD = 64
# Numbers that are looked at for all pairs of ideals.
_MOST = 1 << 32


def ideals(problem: Problem) -> list[int] | None:
    """Return all ideals as sets of bits, the smaller ones first; None where there are too many to compare."""
    words = -(-problem.units // _WORD)
    numbers = 4 * max(len(problem.devices), words)
    if problem.is_bounded:
        numbers += problem.units + words * len(problem.weights)
    most = int((_MOST / numbers) ** 0.5)
    if problem.units > most:
        return None
    needs = [sum(1 << each for each in inputs) for inputs in problem.inputs]
    readers: list[list[int]] = [[] for _ in range(problem.units)]
    for unit, inputs in enumerate(problem.inputs):
        for each in inputs:
            readers[each].append(unit)
    roots = [unit for unit, each in enumerate(needs) if not each]
    level, found = {0: frozenset(roots)}, [0]
    for _ in range(problem.units):
        # Those with one unit more, each with the units that could come next.
        following: dict[int, frozenset[int]] = {}
        for ideal, ready in level.items():
            for unit in ready:
                larger = ideal | 1 << unit
                if larger not in following:
                    new = (each for each in readers[unit] if needs[each] & ~larger == 0)
                    following[larger] = ready - {unit} | frozenset(new)
            if len(found) + len(following) > most:
                return None
        found += following
        level = following
    return found


def best_chain(
    problem: Problem, known: list[int], objective: Callable[[Array, Array], Array]
) -> list[list[int]] | None:
    """Return the units by stage of the best chain of ideals.

    Args:
        problem: the units.
        known: all ideals, the smaller ones first.
        objective: makes of what the stages before cost, and what a stage costs, what they cost together.

    Returns:
        None where memory does not suffice.
    """
    count, stages = len(known), len(problem.devices)
    words = _words(known, problem.units)
    has = _members(words, problem.units)
    cost, send = _costs(problem, has)
    masks = _words([sum(1 << each for each in weight.readers) for weight in problem.weights], problem.units)
    sizes = np.array([each.bit_count() for each in known])
    best = np.full((stages + 1, count), np.inf)
    best[0, 0] = 0.0
    choice = np.zeros((stages + 1, count), np.int64)
    kinds = np.array(problem.devices)
    limits = np.array([[problem.memory[kind]] for kind in problem.devices])
    for end in range(1, count):
        smaller = int(np.searchsorted(sizes, sizes[end]))
        inside = np.flatnonzero(((words[:, :smaller] & ~words[:, end, np.newaxis]) == 0).all(axis=0))
        seconds = cost[kinds][:, [end]] - cost[kinds][:, inside] + send[end]
        total = objective(best[:-1, inside], seconds)
        if problem.is_bounded:
            units = np.flatnonzero(has[:, end])
            used = np.where(has[np.ix_(units, inside)], 0.0, problem.working[units, np.newaxis]).max(axis=0)
            part = words[:, [end]] & ~words[:, inside]
            for weight, mask in zip(problem.weights, masks.T, strict=True):
                used += weight.bytes * ((part & mask[:, np.newaxis]) != 0).any(axis=0)
            total = np.where(used <= limits, total, np.inf)
        start = total.argmin(axis=1)
        best[1:, end], choice[1:, end] = total[np.arange(stages), start], inside[start]
    if np.isinf(best[stages, -1]):
        return None
    ends = [count - 1]
    for stage in range(stages, 0, -1):
        ends.append(int(choice[stage, ends[-1]]))
    ends.reverse()
    return [_units(known[end] & ~known[start]) for start, end in pairwise(ends)]


def _members(words: Bits, units: int) -> Members:
    """Return whether a unit is in an ideal, [units, ideals]."""
    bits = [words[unit // _WORD] >> np.uint64(unit % _WORD) & np.uint64(1) for unit in range(units)]
    return np.stack(bits).astype(bool)


def _costs(problem: Problem, has: Members) -> tuple[Array, Array]:
    """Return the seconds of all units in an ideal, [kinds, ideals], and of sending what crosses behind it, [ideals]."""
    crossing = np.zeros(has.shape[1])
    for value in problem.values:
        made = has[value.source] if value.source >= 0 else np.ones_like(has[0])
        waits = np.zeros_like(made)
        for each in value.readers:
            waits |= ~has[each] if each < problem.units else True
        crossing += value.bytes * (made & waits)
    crossing[-1] = 0.0
    send = np.where(crossing > 0, problem.latency + crossing / problem.bandwidth, 0.0)
    return problem.times @ has.astype(float), send


def _words(known: list[int], units: int) -> Bits:
    """Return sets of bits as words, [words, sets]."""
    mask = (1 << _WORD) - 1
    return np.array(
        [[each >> shift & mask for each in known] for shift in range(0, max(units, 1), _WORD)], dtype=np.uint64
    )  # fmt: skip


def _units(bits: int) -> list[int]:
    return [index for index in range(bits.bit_length()) if bits >> index & 1]
