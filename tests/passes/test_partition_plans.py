"""Plans of partitions: the best there is on small graphs, and near it, in time, on large ones."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from burnish.passes.partition.ideals import ideals
from burnish.passes.partition.orders import Order
from burnish.passes.partition.problem import Plan, Problem, Value, Weight
from burnish.passes.partition.search import Objective, cost_of, lower_bound, search

_MOST_ASSIGNMENTS = 30_000


@st.composite
def _problems(draw: st.DrawFn, units: int = 14, bounded: bool = True) -> Problem:
    count, stages = draw(st.integers(2, units)), draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density, kinds = draw(st.sampled_from([0.1, 0.3, 0.6])), draw(st.integers(1, 2))
    values = []
    for source in range(-1, count):
        readers = np.flatnonzero(generator.random(count) < density)
        readers = tuple(int(each) for each in readers if each > source)
        if generator.random() < 0.2 or not readers:
            readers += (count,)
        values.append(Value(source, readers, float(generator.integers(1, 50))))
    weights = tuple(
        Weight(tuple(sorted({int(each) for each in generator.integers(0, count, 2)})), float(generator.integers(1, 50)))
        for _ in range(count)
    )
    memory = float(generator.integers(60, 400)) if bounded and draw(st.booleans()) else np.inf
    return Problem(
        generator.random((kinds, count)) * 10,
        generator.integers(1, 20, count).astype(float),
        tuple(values),
        weights,
        tuple(int(each) for each in generator.integers(0, kinds, stages)),
        (memory,) * kinds,
        bandwidth=10.0,
        latency=draw(st.sampled_from([0.0, 0.5])),
    )


def _all_plans(problem: Problem) -> list[Plan]:
    """Return every plan, from nothing but what a plan is: each unit in no earlier stage than what it reads."""
    stages, found = len(problem.devices), []

    def assign(chosen: list[int]) -> None:
        unit = len(chosen)
        if unit == problem.units:
            parts = [[each for each, stage in enumerate(chosen) if stage == index] for index in range(stages)]
            if all(parts):
                found.append(problem.plan(parts))
            assume(len(found) <= _MOST_ASSIGNMENTS)
            return
        for stage in range(max((chosen[each] for each in problem.inputs[unit]), default=0), stages):
            assign([*chosen, stage])

    assign([])
    return [plan for plan in found if _fits(problem, plan)]


def _fits(problem: Problem, plan: Plan) -> bool:
    return all(used <= problem.memory[kind] for used, kind in zip(plan.memory, problem.devices, strict=True))


@settings(max_examples=60, deadline=None)
@given(_problems(), st.sampled_from(["throughput", "latency"]))
def test_the_plan_is_the_best_of_all(problem: Problem, objective: Objective) -> None:
    plans = _all_plans(problem)
    found = search(problem, objective)
    if not plans:
        assert found is None
        return
    assert found is not None and found.optimal and _fits(problem, found.plan)
    best = min(cost_of(each, objective) for each in plans)
    assert cost_of(found.plan, objective) == pytest.approx(best, rel=1e-9)
    assert lower_bound(problem, objective) <= best * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(_problems(units=10), st.sampled_from(["throughput", "latency", "memory"]))
def test_the_cuts_of_an_order_are_its_best(problem: Problem, objective: Objective) -> None:
    order = Order(problem, list(range(problem.units)))
    ends = {
        "throughput": lambda: order.least_bottleneck(lower_bound(problem, "throughput"), np.inf),
        "latency": order.least_latency,
        "memory": order.least_memory,
    }[objective]()
    plans = [
        plan
        for plan in _all_plans(problem)
        if [unit for stage in plan.stages for unit in stage] == list(range(problem.units))
    ]
    if not plans:
        assert ends is None
        return
    assert ends is not None
    plan = problem.plan(order.stages(ends))
    assert _fits(problem, plan)
    best = min(cost_of(each, objective) for each in plans)
    # Memory is searched for to a byte.
    assert cost_of(plan, objective) == pytest.approx(best, rel=1e-6, abs=1.0 if objective == "memory" else 0.0)


def test_ideals_are_what_is_closed_downwards() -> None:
    diamond = (Value(0, (1, 2), 1.0), Value(1, (3,), 1.0), Value(2, (3,), 1.0), Value(3, (4,), 1.0))
    problem = Problem(np.ones((1, 4)), np.ones(4), diamond, (), (0, 0), (np.inf,), 1.0, 0.0)
    assert ideals(problem) == [0b0, 0b1, 0b11, 0b101, 0b111, 0b1111]
    # Forty units side by side have 2 ** 40.
    apart = tuple(Value(unit, (40,), 1.0) for unit in range(40))
    assert ideals(Problem(np.ones((1, 40)), np.ones(40), apart, (), (0, 0), (np.inf,), 1.0, 0.0)) is None


def test_a_skip_crosses_every_cut_between_once() -> None:
    values = (
        Value(-1, (0,), 3.0),
        Value(0, (1, 3, 2), 5.0),
        Value(1, (2,), 7.0),
        Value(2, (3,), 11.0),
        Value(3, (4,), 1.0),
    )
    problem = Problem(np.ones((1, 4)), np.zeros(4), values, (Weight((0, 2), 100.0),), (0,) * 4, (np.inf,), 2.0, 0.5)
    plan = problem.plan([[0], [1], [2], [3]])
    assert plan.crossing == (5.0, 12.0, 16.0, 0.0)
    assert plan.send == (3.0, 6.5, 8.5, 0.0)
    assert plan.memory == (100.0, 0.0, 100.0, 0.0)
    assert plan.bottleneck == 9.5 and plan.latency == 22.0


def _large(units: int, stages: int) -> Problem:
    generator = np.random.default_rng(0)
    values = [
        Value(unit, tuple(sorted({unit + 1, min(units, unit + int(generator.integers(1, 20)))})), float(size))
        for unit, size in enumerate(generator.integers(1, 5000, units))
    ]
    return Problem(generator.random((1, units)), np.ones(units), tuple(values), (), (0,) * stages, (np.inf,), 1e6, 1e-3)


def test_time_is_linear_in_units() -> None:
    def seconds(units: int) -> float:
        problem = _large(units, 20)
        bound = lower_bound(problem, "throughput")
        start = time.process_time()
        order = Order(problem, list(range(units)))
        ends = order.least_bottleneck(bound, np.inf)
        assert ends is not None and order.bottleneck(ends) < 1.2 * bound
        return time.process_time() - start

    small, large = (min(seconds(units) for _ in range(3)) for units in (10_000, 80_000))
    # Eight times the units; what looks at all pairs would take 64 times as long.
    assert large < 24 * small


@pytest.mark.parametrize("memory", [np.inf, 900.0])
@pytest.mark.parametrize("units", [300, 2_000, 8_000, 20_000])
def test_a_chain_of_any_length_takes_seconds(units: int, memory: float) -> None:
    """All prefixes of a chain are ideals: what compares them has to know when there are too many."""
    values = tuple(Value(unit, (unit + 1,), 1.0) for unit in range(units))
    ones = np.ones(units)
    weights = memory / units * ones / 10 if np.isfinite(memory) else ones
    problem = Problem(ones[np.newaxis], weights, values, (), (0,) * 8, (memory,), 1e9, 0.0)
    start = time.process_time()
    found = search(problem, "throughput")
    assert found is not None and found.value == pytest.approx(-(-units // 8), rel=1e-6)
    # Seconds; hours where all pairs of ideals of 20,000 units are compared.
    assert time.process_time() - start < 120


def test_more_stages_than_units_cannot_be() -> None:
    assert search(_large(3, 4), "throughput") is None
