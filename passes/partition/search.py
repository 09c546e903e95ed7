"""Search: the best partition there is, or the best over many orders and how far from a lower bound it is.

Where the graph has few ideals, the plan is optimal over all orders. Elsewhere cuts are optimal for each of several
orders of the units: the given one, depth first, what frees most bytes first, and orders near the best of these.

The cuts of one order, and the bound: Archer et al., "Practical Performance Guarantees for Pipelined DNN Inference",
arXiv 2311.03703 (there with a search over orders by other means).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from burnish.passes.partition.ideals import best_chain, ideals
from burnish.passes.partition.orders import Order
from burnish.passes.partition.problem import Array, Plan, Problem

__all__ = ["Found", "Objective", "lower_bound", "search"]

Objective = Literal["throughput", "latency", "memory"]
# Units of all orders that are tried, and the orders at the most.
_TRIED, _TRIES = 200_000, 40


@dataclass(frozen=True, slots=True)
class Found:
    """A plan, and what is known of better ones.

    Attributes:
        plan: the best plan found.
        value: what it costs: seconds, or bytes for the objective memory.
        bound: no plan costs less than this.
        optimal: it is the best plan of all.
    """

    plan: Plan
    value: float
    bound: float
    optimal: bool

    @property
    def gap(self) -> float:
        """By how much of the bound the plan may be worse than the best one."""
        return self.value / self.bound - 1 if self.bound > 0 else 0.0


def search(problem: Problem, objective: Objective, seed: int = 0) -> Found | None:
    """Return the best plan found; None where memory does not suffice, or units for so many stages."""
    best: Plan | None = None
    if objective != "memory":
        known = ideals(problem)
        if known is not None:
            stages = best_chain(problem, known, np.maximum if objective == "throughput" else np.add)
            if stages is None:
                return None
            best = problem.plan(stages)
            return Found(best, cost_of(best, objective), cost_of(best, objective), optimal=True)
    bound = lower_bound(problem, objective)
    for units in _orders(problem, np.random.default_rng(seed)):
        order = Order(problem, units)
        if objective == "throughput":
            ends = order.least_bottleneck(bound, best.bottleneck if best else np.inf)
        else:
            ends = order.least_latency() if objective == "latency" else order.least_memory()
        plan = problem.plan(order.stages(ends)) if ends else None
        if plan and (best is None or cost_of(plan, objective) < cost_of(best, objective)):
            best = plan
    if best is None:
        return None
    value = cost_of(best, objective)
    return Found(best, value, bound, optimal=value <= bound)


def cost_of(plan: Plan, objective: Objective) -> float:
    """Return what is to be least."""
    return {"throughput": plan.bottleneck, "latency": plan.latency, "memory": plan.peak_memory}[objective]


def lower_bound(problem: Problem, objective: Objective) -> float:
    """Return what no plan can be below: the work shared out evenly, and the largest unit."""
    stages = len(problem.devices)
    kinds = sorted(set(problem.devices))
    fastest = problem.times[kinds].min(axis=0)
    # The last unit before a cut has no reader before it, so that what it makes crosses.
    made = {each.source for each in problem.values if each.readers}
    least = min(each.bytes for each in problem.values) if made.issuperset(range(problem.units)) else 0.0
    sending = problem.send_seconds(least) * (stages - 1)
    if objective == "memory":
        weights = sum(each.bytes for each in problem.weights)
        return max(weights / stages, max(problem.memory_of([unit]) for unit in range(problem.units)))
    if objective == "latency":
        return float(fastest.sum() + sending)
    # A device as fast as two takes two shares of the work.
    return max(float(fastest.max()), _even_share(problem, kinds), float(fastest.sum() + sending) / stages)


def _even_share(problem: Problem, kinds: list[int]) -> float:
    """Return the bottleneck where every unit could be shared out over devices as their speeds want it."""
    fastest = problem.times[kinds].min(axis=0)
    # The most that a second of each kind can do, in seconds of the fastest.
    worked = problem.times > 0
    speed = {
        kind: float((fastest[worked[kind]] / problem.times[kind, worked[kind]]).max(initial=0.0)) for kind in kinds
    }
    total = sum(speed[kind] for kind in problem.devices)
    return float(fastest.sum()) / total if total else 0.0


def _orders(problem: Problem, generator: np.random.Generator) -> Iterator[list[int]]:
    """Yield topological orders of the units."""
    numbers = np.arange(problem.units, dtype=float)
    yield list(range(problem.units))
    yield _depth_first(problem)
    yield _ordered(problem, -_freed(problem))
    tries = min(_TRIES, _TRIED // max(problem.units, 1))
    for index in range(tries):
        # From small changes of the given order to large ones.
        spread = problem.units * (index + 1) / (2 * tries)
        yield _ordered(problem, numbers + generator.normal(scale=spread, size=problem.units))


def _freed(problem: Problem) -> Array:
    """Return by how much a unit makes less cross: what it is the only reader of, less what it makes."""
    found = np.zeros(problem.units)
    for value in problem.values:
        if value.source >= 0:
            found[value.source] -= value.bytes
        if len(value.readers) == 1 and value.readers[0] < problem.units:
            found[value.readers[0]] += value.bytes
    return found


def _depth_first(problem: Problem) -> list[int]:
    """Return the order in which what a unit makes is read soon: the last unit that became ready comes next."""
    latest = iter(range(problem.units, 0, -1))
    return _ready_first(problem, lambda _: float(next(latest)))


def _ordered(problem: Problem, keys: Array) -> list[int]:
    """Return the topological order in which of the units that are ready the one with the least key comes next."""
    return _ready_first(problem, lambda unit: float(keys[unit]))


def _ready_first(problem: Problem, key: Callable[[int], float]) -> list[int]:
    waiting = [len(each) for each in problem.inputs]
    readers: list[list[int]] = [[] for _ in range(problem.units)]
    for unit, inputs in enumerate(problem.inputs):
        for each in inputs:
            readers[each].append(unit)
    ready: list[tuple[float, int]] = []

    def offer(units: Iterable[int]) -> None:
        for unit in units:
            heapq.heappush(ready, (key(unit), unit))

    offer(unit for unit, count in enumerate(waiting) if not count)
    order = []
    while ready:
        unit = heapq.heappop(ready)[1]
        order.append(unit)
        for each in readers[unit]:
            waiting[each] -= 1
        offer(each for each in readers[unit] if not waiting[each])
    return order
