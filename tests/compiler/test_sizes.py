"""When two symbolic sizes are the same."""

from __future__ import annotations

import pytest
import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Max, Min
from torch.utils._sympy.value_ranges import ValueRanges

from burnish.compiler.sizes import same_size

S, T = sympy.Symbol("s0", integer=True, positive=True), sympy.Symbol("s1", integer=True, positive=True)


@pytest.fixture
def bounded() -> ShapeEnv:
    environment = ShapeEnv()
    environment.var_to_range[S] = ValueRanges(0, 512)
    return environment


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (S, S, True),
        (2 * (S + 1), 2 * S + 2, True),
        (S, S + 1, False),
        (S, 2, False),
        (Min(512, S), S, True),
        (Min(511, S), S, False),
        (Max(3, S), S, False),
        (FloorDiv(S * 4, 4), S, True),
        (FloorDiv(S, 2) * 2, S, False),
        (S * T, T * S, True),
        (S + T, 2 * S, False),
        (3, 3, True),
        (3, 4, False),
    ],
)
def test_over_bounded_ranges(first: sympy.Expr, second: sympy.Expr, same: bool, bounded: ShapeEnv) -> None:
    assert same_size(first, second, bounded) is same


def test_a_minimum_matters_where_nothing_bounds_the_symbol() -> None:
    assert not same_size(Min(512, S), S, ShapeEnv())
