"""Index values of views and of `index`: the value at another index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from burnish.compiler.sizes import expression, static_size
from burnish.passes.canonical.types import shape_of, tensor_of
from burnish.passes.fusion.index_calls import Call, axis
from burnish.passes.fusion.index_values import (
    MOST_ELEMENTS,
    Grid,
    Linear,
    Value,
    aligned,
    grid_of,
    joint,
    linear_of,
    substitute,
    varies,
)

__all__ = ["VIEWS"]


def _viewed(call: Call, indices: Sequence[Linear]) -> Value | None:
    value = call.value("self")
    return None if value is None else substitute(value, indices, call.shape)


def _reshape(call: Call) -> Value | None:
    """A view that adds and removes dimensions of size 1; any other one where all sizes are numbers."""
    value, own = call.value("self"), call.sizes("self")
    if value is None:
        return None
    kept = [dim for dim, size in enumerate(own) if static_size(size) != 1]
    new = [dim for dim, size in enumerate(call.shape) if static_size(size) != 1]
    if [expression(own[dim]) for dim in kept] == [expression(call.shape[dim]) for dim in new]:
        places = dict(zip(kept, new, strict=True))
        return _viewed(call, [axis(places.get(dim, -1), len(call.shape)) for dim in range(len(own))])
    if isinstance(value, Grid) and value.uniform:
        return _viewed(call, [axis(-1, len(call.shape))] * len(own))
    whole = grid_of(value, own, range(len(own)))
    sizes = [static_size(size) for size in call.shape]
    return None if whole is None or None in sizes else Grid(whole.reshape([size or 0 for size in sizes]))


def _expand(call: Call) -> Value | None:
    value, own, rank = call.value("self"), call.sizes("self"), len(call.shape)
    if value is None or not aligned(value, own, call.shape):
        return None
    return _viewed(call, [axis(dim + rank - len(own), rank) for dim in range(len(own))])


def _permute(call: Call) -> Value | None:
    rank = len(call.shape)
    dims = [dim % rank for dim in call.given["dims"]]
    return _viewed(call, [axis(dims.index(dim), rank) for dim in range(rank)])


def _slice(call: Call) -> Value | None:
    value, own, rank = call.value("self"), call.sizes("self"), len(call.shape)
    if value is None:
        return None
    cut, start, step = call.given["dim"] % rank, 0, 1
    if varies(value, cut):
        first, size, every = call.number("start"), static_size(own[cut]), call.number("step")
        if call.given["start"] is None:
            first = 0
        if first is None or every is None or (first < 0 and size is None):
            return None
        start, step = max(first + (size or 0), 0) if first < 0 else first, every
    return _viewed(call, [axis(dim, rank, start, step) if dim == cut else axis(dim, rank) for dim in range(rank)])


def _select(call: Call) -> Value | None:
    value, own, rank = call.value("self"), call.sizes("self"), len(call.shape)
    if value is None:
        return None
    cut, at = call.given["dim"] % len(own), 0
    if varies(value, cut):
        index, size = call.number("index"), static_size(own[cut])
        if index is None or (index < 0 and size is None):
            return None
        at = index + (size or 0) if index < 0 else index
    return _viewed(
        call, [Linear(at, (0,) * rank) if dim == cut else axis(dim - (dim > cut), rank) for dim in range(len(own))]
    )


def _index(call: Call) -> Value | None:
    """An index for each dimension, by values that are themselves linear; any where the value varies nowhere."""
    value, own, rank = call.value("self"), call.sizes("self"), len(call.shape)
    indices = call.given["indices"]
    if value is None or len(indices) != len(own) or not all(isinstance(each, fx.Node) for each in indices):
        return None
    forms: list[Linear] = []
    for dim, each in enumerate(indices):
        index, fake = call.values.get(each), tensor_of(each)
        if fake is None or fake.dtype in (torch.bool, torch.uint8):
            return None
        if not varies(value, dim):
            forms.append(Linear(0, (0,) * rank))
            continue
        form = linear_of(index, rank)
        if index is None or form is None or not aligned(index, tuple(fake.shape), call.shape):
            return _gather(call, value)
        if form.constant < 0 or min(form.factors, default=0) < 0:
            return _gather(call, value)
        forms.append(form)
    return substitute(value, forms, call.shape)


def _gather(call: Call, value: Value) -> Value | None:
    """An index by constants into a value whose sizes are numbers where it varies."""
    whole, points = grid_of(value, call.sizes("self")), []
    for dim, each in enumerate(call.given["indices"]):
        index, sizes = call.values.get(each), shape_of(each) or ()
        at = torch.zeros((1,) * len(sizes), dtype=torch.int64)
        if varies(value, dim):
            found = None if index is None else grid_of(index, sizes)
            if found is None:
                return None
            at = found
        points.append(at)
    if whole is None or torch.Size(joint(points)).numel() > MOST_ELEMENTS:
        return None
    return Grid(whole[tuple(points)])


VIEWS: dict[str, Callable[[Call], Value | None]] = {
    "reshape view unsqueeze squeeze squeeze.dim squeeze.dims": _reshape,
    "expand": _expand,
    "permute": _permute,
    "slice.Tensor": _slice,
    "select.int": _select,
    "index.Tensor": _index,
}
