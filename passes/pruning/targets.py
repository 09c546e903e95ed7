"""Targets: how large a part has to go for a Program to cost what it may.

The part is searched for by bisection; every trial is a Program of that size, and its cost is counted, or timed on the
backend, never guessed from widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from burnish.compiler.context import Context
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.program import Program

__all__ = ["Goal", "Measure", "reached"]

Measure = Literal["flops", "params", "latency"]
_TRIALS = {"flops": 14, "params": 14, "latency": 9}
# How near is near enough, and how much more is little, as a part of the target.
_NEAR = {"flops": 0.005, "params": 0.005, "latency": 0.03}


@dataclass(frozen=True, slots=True)
class Goal:
    """What to reach.

    Attributes:
        measure: flops or params, counted at the sample inputs; or latency, seconds of a call on the backend.
        part: of what it was.
    """

    measure: Measure
    part: float


def reached(goal: Goal, program: Program, context: Context, smaller: Callable[[float], Program]) -> tuple[float, float]:
    """Return the least ratio whose Program costs what it may, or little more, and the part of the cost that it has.

    Args:
        goal: what to reach.
        program: as it is.
        context: measures.
        smaller: gives the Program for a ratio from 0 to 1.

    Raises:
        OptionError: no ratio reaches it; the message says what can be reached.
        InputError: there are no sample inputs to count or time with.
    """
    if goal.measure != "params" and not program.samples:
        raise InputError(f"pass 'prune': a target of {goal.measure} needs sample inputs")

    def part(ratio: float) -> float:
        trial = smaller(ratio)
        if goal.measure == "latency":
            before, after = context.measure([program, trial])
            return after / before
        return _size(trial, goal.measure) / _size(program, goal.measure)

    near = goal.part * _NEAR[goal.measure]
    low, high = 0.0, 1.0
    found = part(high)
    if found > goal.part + near:
        raise OptionError(
            f"pass 'prune': {goal.measure}={goal.part:g} cannot be reached: with all that can go the program still has"
            f" {found:.2f} of its {goal.measure}; kinds, keep and limits say what can go"
        )
    for _ in range(_TRIALS[goal.measure]):
        if abs(found - goal.part) <= near:
            break
        middle = (low + high) / 2
        tried = part(middle)
        if tried > goal.part + near:
            low = middle
        else:
            high, found = middle, tried
    return high, found


def _size(program: Program, measure: Measure) -> float:
    if measure == "params":
        return float(program.parameter_count())
    return float(estimated(program.cost().at_samples().flops))
