"""The measure of drift, which every contract rests on."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.compiler.errors import VerificationError
from burnish.compiler.numerics import Exact, Lossy, Reassociates, drift, worst_drift
from burnish.compiler.verify import check_contract

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("actual", "expected", "found"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 1.0], [1.0, 1.5], 0.5 / 1.5),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([1.0, 1.0], [NAN, 1.0], INF),
        ([INF, 1.0], [INF, 1.0], 0.0),
        ([-INF, 1.0], [INF, 1.0], INF),
        ([NAN, 1.0], [INF, 1.0], INF),
        ([NAN], [NAN], 0.0),
        ([0.0], [0.0], 0.0),
        ([1e-30], [0.0], INF),
        ([], [], 0.0),
    ],
)
def test_drift_of_floats(actual: list[float], expected: list[float], found: float) -> None:
    assert drift(torch.tensor(actual), torch.tensor(expected)) == pytest.approx(found)


def test_drift_of_other_kinds() -> None:
    assert drift(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0.0
    assert drift(torch.tensor([1, 2]), torch.tensor([1, 3])) == INF
    assert drift(torch.zeros(2), torch.zeros(3)) == INF
    assert drift(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) == INF
    assert drift(3, 3) == 0.0
    assert drift(3, 4) == INF
    assert drift(True, 1) == INF
    assert drift(NAN, NAN) == 0.0
    assert drift(None, None) == 0.0
    assert drift(torch.tensor([1 + 1j]), torch.tensor([1 + 1j])) == 0.0


def test_worst_drift_needs_as_many_leaves() -> None:
    assert worst_drift([torch.ones(1), torch.zeros(1)], [torch.ones(1), torch.ones(1)]) == 1.0
    with pytest.raises(ValueError, match="shorter"):
        worst_drift([torch.ones(1)], [])


def test_contracts() -> None:
    one, near, far = {"y": torch.ones(4)}, {"y": torch.ones(4) + 5e-6}, {"y": torch.ones(4) + 1e-3}
    assert check_contract(Exact(), one, one) == 0.0
    with pytest.raises(VerificationError, match="allows 0"):
        check_contract(Exact(), one, near)
    assert 0 < check_contract(Reassociates(1e-5), one, near) < 1e-5
    with pytest.raises(VerificationError, match="allows 1e-05"):
        check_contract(Reassociates(1e-5), one, far)
    assert check_contract(Lossy(), one, far) == pytest.approx(1e-3, rel=1e-3)
