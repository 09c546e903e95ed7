"""Weights as integers: half a step off at most, both signs alike, zeros exact."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.passes.quantization.weights import quantized_rows, row_scales


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6), st.integers(2, 8), st.booleans())
def test_half_a_step(numbers: list[float], bits: int, by_row: bool) -> None:
    weight = torch.tensor(numbers).reshape(2, 3)
    scales = row_scales(weight, bits, by_row)
    integers = quantized_rows(weight, scales, bits)
    assert int(integers.abs().max()) < 2 ** (bits - 1) and len(set(scales.tolist())) <= (2 if by_row else 1)
    assert integers.dtype == torch.int8 and scales.dtype == torch.float32
    steps = scales.double().unsqueeze(1)
    assert bool(((integers * steps - weight).abs() <= 0.5001 * steps).all())


def test_both_signs_alike_and_zeros() -> None:
    weight = torch.tensor([[-2.0, 1.0], [0.5, -0.25], [0.0, 0.0]])
    scales = row_scales(weight)
    integers = quantized_rows(weight, scales)
    assert integers.tolist() == [[-127, 64], [127, -64], [0, 0]]
    assert bool((scales > 0).all())
