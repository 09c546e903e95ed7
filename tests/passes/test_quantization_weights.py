"""Weights as integers: half a step off at most, both signs alike, zeros exact."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.passes.quantization.weights import quantized_rows


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6))
def test_half_a_step(numbers: list[float]) -> None:
    weight = torch.tensor(numbers).reshape(2, 3)
    integers, scales = quantized_rows(weight)
    assert integers.dtype == torch.int8 and scales.dtype == torch.float32
    steps = scales.double().unsqueeze(1)
    assert bool(((integers * steps - weight).abs() <= 0.5001 * steps).all())


def test_both_signs_alike_and_zeros() -> None:
    integers, scales = quantized_rows(torch.tensor([[-2.0, 1.0], [0.5, -0.25], [0.0, 0.0]]))
    assert integers.tolist() == [[-127, 64], [127, -64], [0, 0]]
    assert bool((scales > 0).all())
