"""Views of random sizes carry units to where the elements go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.passes.pruning.layouts import Block, Layout, factors
from burnish.passes.pruning.units import Units

_SIZES = st.sampled_from([1, 2, 3, 4])


@st.composite
def views(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes with as many elements: the parts of one list, joined in two ways."""
    parts = draw(st.lists(_SIZES, min_size=1, max_size=5))
    shapes = []
    for _ in range(2):
        cuts = sorted(draw(st.sets(st.integers(1, len(parts)), max_size=len(parts))) | {len(parts)})
        shapes.append([math.prod(parts[start:end]) for start, end in zip([0, *cuts], cuts, strict=False)])
    return shapes[0], shapes[1]


def _spread(layout: Layout, shape: list[int]) -> list[np.ndarray]:
    """Return for every block the unit of each element."""
    found = []
    for block in layout.blocks:
        order = np.argsort(block.dims)
        sizes = [size if dim in block.dims else 1 for dim, size in enumerate(shape)]
        found.append(np.broadcast_to(block.units.transpose(order).reshape(sizes), shape))
    return found


@given(views())
@settings(max_examples=200, deadline=None)
def test_steps_of_a_view(shapes: tuple[list[int], list[int]]) -> None:
    before, after = shapes
    steps = factors(before, after)
    assert [dim for old, _ in reversed(steps) for dim in old] == list(range(len(before)))
    assert [dim for _, new in reversed(steps) for dim in new] == list(range(len(after)))
    for old, new in steps:
        assert math.prod(before[dim] for dim in old) == math.prod(after[dim] for dim in new)


@given(views(), st.data())
@settings(max_examples=200, deadline=None)
def test_units_go_where_elements_go(shapes: tuple[list[int], list[int]], data: st.DataObject) -> None:
    before, after = shapes
    units = Units()
    dim = data.draw(st.integers(0, len(before) - 1))
    layout = Layout.of([Block((dim,), units.new(before[dim]))])
    moved = layout.reshaped(before, after, units)
    assert [each.reshape(after).tolist() for each in _spread(layout, before)] == [
        each.tolist() for each in _spread(moved, after)
    ]
    # And back: nothing was lost on the way.
    back = moved.reshaped(after, before, units)
    assert [each.tolist() for each in _spread(back, before)] == [each.tolist() for each in _spread(layout, before)]


def test_slices_of_a_block_are_tied_along_the_other_dimension() -> None:
    units = Units()
    heads = Layout.of([Block((2,), units.new(12))]).reshaped([2, 5, 12], [2, 5, 3, 4], units)
    rows = heads.along(2, units)
    assert rows is not None
    assert len(rows) == 3
    of = units.classes().of.reshape(3, 4)
    assert (of == of[:, :1]).all()
    assert len(np.unique(of)) == 3


def test_two_dimensions_that_a_view_joins_stay() -> None:
    units = Units()
    layout = Layout.of([Block((0,), units.new(3)), Block((1,), units.new(4))])
    assert not layout.reshaped([3, 4], [12], units).blocks
    assert len(units.classes().frozen) == 7


@pytest.mark.parametrize("size", [0, 1])
def test_a_tie_of_nothing(size: int) -> None:
    units = Units()
    found = units.new(size)
    units.tie(found, found.copy())
    assert units.classes().count == size
