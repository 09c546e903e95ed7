"""Histograms lose nothing, and observers choose what their definitions say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.compiler.integers import IntegerRules
from burnish.passes.quantization.histograms import Histogram
from burnish.passes.quantization.ranges import OBSERVERS, covered, parameters

# Numbers that no multiplication by a power of two here makes subnormal.
_NUMBERS = st.floats(-1e6, 1e6, width=32).filter(lambda each: each == 0 or abs(each) > 1e-30)
_RULES = IntegerRules()
_SIGNED = IntegerRules(activations=torch.int8, symmetric=True)


def _seen(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(_NUMBERS, min_size=1, max_size=20), min_size=1, max_size=5))
def test_every_element_is_counted_once_and_in_its_place(batches: list[list[float]]) -> None:
    tensors = [torch.tensor(each) for each in batches]
    seen, every = _seen(*tensors), torch.cat(tensors)
    others = every[every != 0]
    assert seen.zeros == len(every) - len(others)
    assert int(seen.counts.sum()) == len(others)
    assert (seen.low, seen.high) == (float(every.min()), float(every.max()))
    assert len(seen.counts) <= 4096
    width = 2.0**seen.exponent
    for number in others.double().tolist():
        index = math.floor(number / width) - seen.first
        assert int(seen.counts[index]) > 0
        assert abs(float(seen.centers[index]) - number) <= width / 2


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_the_data_does_not_matter(order: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(50, generator=generator) * 10.0**power for power in (-3, 0, 1, 4)]
    plain, mixed = _seen(*batches), _seen(*(batches[index] for index in order))
    assert (plain.exponent, plain.first) == (mixed.exponent, mixed.first)
    assert torch.equal(plain.counts, mixed.counts)


def test_large_tensors_are_sampled_but_extremes_are_not() -> None:
    value = torch.zeros(2**18)
    value[77777], value[5] = 9.0, -3.0
    seen = _seen(value)
    assert (seen.low, seen.high) == (-3.0, 9.0)
    assert 2**14 < seen.zeros <= 2**17


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_ranges_hold_zero_and_never_reach_further_than_the_data(observer: str) -> None:
    for shift in (-5.0, 0.0, 5.0):
        seen = _seen(torch.randn(4000, generator=torch.Generator().manual_seed(1)) + shift)
        found = covered(seen, observer, _RULES)  # type: ignore[arg-type]
        assert found is not None
        low, high = found
        assert min(seen.low, 0.0) <= low <= 0.0 <= high <= max(seen.high, 0.0)


def test_outliers() -> None:
    """Of a normal distribution with one far outlier all but min-max leave the outlier out."""
    body = torch.randn(200_000, generator=torch.Generator().manual_seed(2))
    seen = _seen(body[:65536], torch.cat([body[65536:131072], torch.tensor([400.0])]))
    assert covered(seen, "min-max", _RULES)[1] == 400.0  # type: ignore[index]
    assert covered(seen, "percentile", _RULES)[1] < 6.0  # type: ignore[index]
    # (400 - t)^2 of clipping plus n (t / 255)^2 / 12 of rounding is least here.
    least = 400 / (1 + 131_073 / 255**2 / 12)
    assert covered(seen, "mse", _RULES)[1] == pytest.approx(least, rel=0.02)  # type: ignore[index]


def test_mse_is_the_least_squared_error() -> None:
    """What it chooses does no worse than all that was seen, measured on the data themselves."""
    values = torch.distributions.Laplace(0.0, 1.0).sample((60_000,))
    seen = _seen(values)

    def error(observer: str) -> float:
        low, high = covered(seen, observer, _SIGNED)  # type: ignore[arg-type,misc]
        chosen = parameters(low, high, _SIGNED)
        integers = (values / chosen.scale).round().clamp(chosen.low, chosen.high)
        return float((integers * chosen.scale - values).square().mean())

    assert error("mse") < 0.9 * error("min-max")
    assert error("mse") <= 1.02 * min(map(error, OBSERVERS))


def test_moving_average_follows_the_batches() -> None:
    seen = _seen(*(torch.tensor([-1.0, 1.0]) for _ in range(50)), torch.tensor([-9.0, 9.0]))
    low, high = covered(seen, "moving-average", _RULES)  # type: ignore[misc]
    assert (low, high) == (pytest.approx(-1.08), pytest.approx(1.08))


def test_no_range() -> None:
    assert covered(_seen(torch.tensor([-1e-30, 1e-30])), "mse", _RULES) is None
    assert covered(Histogram(), "mse", _RULES) is None
    assert covered(_seen(torch.zeros(3)), "mse", _RULES) is None
    assert covered(_seen(torch.tensor([1.0, math.nan])), "mse", _RULES) is None
    assert covered(_seen(torch.tensor([1.0, math.inf])), "mse", _RULES) is None


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e5, 0), st.floats(0, 1e5), st.booleans(), st.sampled_from([torch.uint8, torch.int8]))
def test_parameters_cover_the_range(low: float, high: float, symmetric: bool, dtype: torch.dtype) -> None:
    if max(-low, high) < 1e-20:
        return
    rules = IntegerRules(activations=dtype, symmetric=symmetric)
    found = parameters(low, high, rules)
    assert found.low <= found.zero_point <= found.high and found.scale > 0
    if symmetric:
        assert found.zero_point == (0 if dtype == torch.int8 or low >= 0 else 128)
    # The ends are a step off at most: zero is an integer, and scales are rounded.
    assert (found.low - found.zero_point) * found.scale <= low + 1.6 * found.scale
    assert (found.high - found.zero_point) * found.scale >= high - 1.6 * found.scale


@pytest.mark.parametrize("width", [2.5, 3.0, 6.0])
def test_entropy_keeps_the_bound_of_a_clamp(width: float) -> None:
    """Much is exactly 6, as behind a relu6: to clip lower would put that onto numbers that were something else."""
    for seed in range(5):
        body = torch.randn(60_000, generator=torch.Generator().manual_seed(seed)) * width
        found = covered(_seen(body.clamp(0, 6)), "entropy", _RULES)
        assert found is not None
        assert found[1] > 5.7
