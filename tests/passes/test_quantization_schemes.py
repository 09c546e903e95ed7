"""Schemes: what integers can say, they say to half a step, and zero exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.passes.quantization.schemes import (
    INT8,
    INT8_PER_CHANNEL,
    UINT8,
    Quantized,
    Scheme,
    parameters,
    quantized,
)

_SCHEMES = [INT8, UINT8, INT8_PER_CHANNEL, Scheme(torch.uint8, symmetric=True)]
_numbers = st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6)


def dequantized(given: Quantized) -> torch.Tensor:
    shape = [-1 if index == given.axis else 1 for index in range(given.values.dim())]
    scales, zero_points = (
        each if given.axis is None else each.reshape(shape) for each in (given.scales, given.zero_points)
    )
    return (given.values.long() - zero_points) * scales


@settings(max_examples=50, deadline=None)
@given(_numbers, st.sampled_from(_SCHEMES), st.sampled_from([0, 1, -1]))
def test_half_a_step(numbers: list[float], scheme: Scheme, axis: int) -> None:
    value = torch.tensor(numbers).reshape(2, 3)
    found = quantized(value, scheme, axis)
    assert found.values.dtype == scheme.dtype
    assert found.scales.shape == ((value.shape[axis],) if scheme.per_channel else ())
    scales = found.scales if found.axis is None else found.scales.unsqueeze(1 - found.axis)
    assert bool(((dequantized(found) - value).abs() <= 0.5001 * scales + 1e-30).all())


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.sampled_from(_SCHEMES))
def test_zero_is_exact_and_the_ends_are_covered(a: float, b: float, scheme: Scheme) -> None:
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    scale, zero_point = parameters(low, high, scheme)
    assert scheme.low <= int(zero_point) <= scheme.high and float(scale) > 0
    bottom, top = ((end - int(zero_point)) * float(scale) for end in (scheme.low, scheme.high))
    # An end may lie half a step outside, since the zero point is rounded.
    slack = 0.5001 * float(scale)
    assert bottom - slack <= min(float(low), 0.0) and max(float(high), 0.0) <= top + slack


@pytest.mark.parametrize("scheme", _SCHEMES)
def test_zeros_and_nothing(scheme: Scheme) -> None:
    assert bool((dequantized(quantized(torch.zeros(2, 3), scheme, 0)) == 0).all())
    assert quantized(torch.zeros(0, 3), Scheme(torch.int8, symmetric=True)).values.shape == (0, 3)


def test_symmetric_weights_use_both_signs_alike() -> None:
    value = torch.tensor([[-2.0, 1.0], [0.5, -0.25]])
    found = quantized(value, INT8_PER_CHANNEL, 0)
    assert found.values.tolist() == [[-127, 64], [127, -64]]
    assert found.zero_points.tolist() == [0, 0]
