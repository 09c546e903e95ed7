"""Rules on operators that only rearrange: `reshape` for all that regroups, `permute` for all that transposes.

- `view`, `_unsafe_view`, `flatten`, `unflatten`, `view_as`, `reshape_as` become `reshape`. Where one dimension alone is
  dynamic its entry is -1 and the others are numbers, so that no size has to be computed.
- `t`, `transpose`, `swapaxes`, `movedim`, `numpy_T`, `mT` become `permute` with dimensions counted from 0.
- `squeeze`, `unsqueeze`, `expand` and `slice` stay, unless they change nothing. A computed size in an `expand` that is
  the dimension's own is -1. A slice of a slice of the same dimension is one slice.

Not handled: `flatten` and the like of a tensor of which two or more dimensions stay dynamic in the result keep their
form; a chain of views that comes back to its start is recognized over `reshape`, `squeeze` and `unsqueeze` alone;
slices of a slice stay where the dimension, or a bound, is dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.aliases import drop
from burnish.passes.canonical.types import same_shape, shape_of, tensor_of

__all__ = ["RULES"]

_aten = torch.ops.aten
_REGROUPS = {
    _aten.reshape.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
}
_TRANSPOSES = (
    "aten.t",
    "aten.transpose.int",
    "aten.swapaxes",
    "aten.swapdims",
    "aten.movedim.int",
    "aten.movedim.intlist",
    "aten.numpy_T",
    "aten.mT",
    "aten.permute",
)
_REGROUPING = (
    "aten.view",
    "aten._unsafe_view",
    "aten.reshape",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.view_as",
    "aten.reshape_as",
)
# How far back a chain of views is followed; no model makes longer ones, and it keeps a sweep linear.
_CHAIN = 8


@rule(
    *_REGROUPING,
    "aten.squeeze",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze",
)
def drop_regrouping(node: fx.Node, rewriter: Rewriter) -> None:
    """What regroups to a shape that a value before it has is that value: the elements keep their order."""
    source, shape = node.args[0], shape_of(node)
    if _squeezes_dynamic(node):
        rewriter.skip(node, "it squeezes a dynamic dimension, which may be 1")
        return
    for _ in range(_CHAIN):
        if not isinstance(source, fx.Node):
            return
        if same_shape(shape_of(source), shape):
            drop(node, source, rewriter)
            return
        if source.target not in _REGROUPS or _squeezes_dynamic(source):
            return
        source = source.args[0]


@rule(*_REGROUPING)
def reshape_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Everything that regroups is reshape(x, shape), with numbers and at most one -1 where that says it all."""
    shape = shape_of(node)
    written = node.args[1] if node.target in (_aten.view.default, _aten._unsafe_view.default) else None
    written = arguments(node)["shape"] if node.target is _aten.reshape.default else written
    wanted = None if shape is None else _plain(shape)
    if wanted is None:
        if written is None:
            rewriter.skip(node, "more than one dimension of the result is dynamic")
            return
        wanted = list(written)  # type: ignore[arg-type]
    if node.target is _aten.reshape.default and list(written) == wanted:  # type: ignore[arg-type]
        return
    rewriter.replace(node, "aten.reshape", (node.args[0], wanted), {}, same_type=True)


@rule("aten.reshape")
def reshape_of_view(node: fx.Node, rewriter: Rewriter) -> None:
    """A reshape of what regroups is a reshape of what that regroups."""
    inner = node.args[0]
    if isinstance(inner, fx.Node) and inner.target in _REGROUPS:
        rewriter.replace(node, "aten.reshape", (inner.args[0], arguments(node)["shape"]), {}, same_type=True)


@rule(*_TRANSPOSES)
def permute_form(node: fx.Node, rewriter: Rewriter) -> None:
    """Every transposition is permute(x, dims) of what no permute made; one that keeps the order is nothing."""
    source, dims = node.args[0], _dims(node)
    if dims is None or not isinstance(source, fx.Node):
        return
    if source.target is _aten.permute.default:
        inner = _dims(source)
        if inner is not None:
            dims, source = [inner[each] for each in dims], source.args[0]
    assert isinstance(source, fx.Node)
    if dims == list(range(len(dims))):
        drop(node, source, rewriter)
    elif (
        node.target is not _aten.permute.default or source is not node.args[0] or list(arguments(node)["dims"]) != dims
    ):
        rewriter.replace(node, "aten.permute", (source, dims), {}, same_type=True)


@rule("aten.expand", "aten.expand_as", "aten.slice.Tensor", "aten.repeat", "aten.narrow")
def drop_whole(node: fx.Node, rewriter: Rewriter) -> None:
    """An expansion to the shape that is there, and a slice that takes all, are nothing."""
    source = node.args[0]
    if isinstance(source, fx.Node) and same_shape(shape_of(source), shape_of(node)):
        drop(node, source, rewriter)


@rule("aten.slice.Tensor")
def slice_of_slice(node: fx.Node, rewriter: Rewriter) -> None:
    """A slice of a slice along the same dimension is a slice."""
    inner, outer = node.args[0], _slice(node)
    within = _slice(inner) if isinstance(inner, fx.Node) and inner.target is _aten.slice.Tensor else None
    if outer is None or within is None or outer[0] != within[0]:
        return
    assert isinstance(inner, fx.Node)
    dim, shape = within[0], shape_of(inner.args[0])
    size = None if shape is None else shape[dim]
    if not isinstance(size, int):
        # Its type would be another expression of the same size.
        rewriter.skip(node, f"dimension {dim} is dynamic")
        return
    # Python cuts ranges as ATen cuts dimensions, negative and too large bounds included.
    taken = range(size)[within[1]][outer[1]]
    start, end = (taken[0], taken[-1] + 1) if taken else (0, 0)
    args = (inner.args[0], dim, start, end) if taken.step == 1 else (inner.args[0], dim, start, end, taken.step)
    rewriter.replace(node, "aten.slice.Tensor", args, {}, origins=[inner], same_type=True)


def _slice(node: fx.Node) -> tuple[int, slice] | None:
    """Return the dimension, counted from 0, and the bounds of a slice; None where one is computed."""
    found, value = arguments(node), tensor_of(node)
    bounds = [found["start"], found["end"], found["step"]]
    if value is None or any(each is not None and type(each) is not int for each in bounds):
        return None
    return found["dim"] % value.dim(), slice(*bounds)


def _squeezes_dynamic(node: fx.Node) -> bool:
    """Tell whether `node` squeezes a dimension that its type takes for other than 1, and that may be 1 in a call."""
    sizes = shape_of(node.args[0])
    if sizes is None or not str(node.target).startswith("aten.squeeze"):
        return False
    dims = arguments(node).get("dim", range(len(sizes)))
    return any(
        not isinstance(sizes[each], int) for each in (dims if isinstance(dims, (list, tuple, range)) else [dims])
    )


@rule("aten.expand")
def expand_form(node: fx.Node, rewriter: Rewriter) -> None:
    """A size that an expansion computes, and that is the dimension's own, is -1: it stays as it is."""
    found, source, shape = arguments(node), shape_of(node.args[0]), shape_of(node)
    if source is None or shape is None:
        return
    size, new = list(found["size"]), len(shape) - len(source)
    wanted = [
        -1
        if isinstance(each, fx.Node) and index >= new and same_shape(source[index - new : index - new + 1], (own,))
        else each
        for index, (each, own) in enumerate(zip(size, shape, strict=True))
    ]
    if wanted != size:
        rewriter.replace(node, "aten.expand", (found["self"], wanted), {}, same_type=True)


def _plain(shape: Sequence[int | torch.SymInt]) -> list[int] | None:
    """Return `shape` as numbers with at most one -1; None where that does not say it."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    # With a size of 0 beside it, -1 could stand for anything.
    return sizes if sizes.count(-1) <= (0 if math.prod(sizes) == 0 else 1) else None


def _dims(node: fx.Node) -> list[int] | None:
    """Return the order of dimensions that a transposition makes, counted from 0."""
    value = tensor_of(node)
    if value is None:
        return None
    rank, found, name = value.dim(), arguments(node), str(node.target).split(".")[1]
    order = list(range(rank))
    if name == "permute":
        return [each % rank for each in found["dims"]]
    if name in ("numpy_T", "t"):
        return order[::-1]
    if rank == 0:
        return order
    if name == "movedim":
        return _moved(rank, found["source"], found["destination"])
    if name == "mT":
        first, second = rank - 2, rank - 1
    else:
        pair: list[Any] = [found[key] for key in found if key not in ("self",)]
        first, second = pair[0] % rank, pair[1] % rank
    order[first], order[second] = order[second], order[first]
    return order


def _moved(rank: int, source: Any, destination: Any) -> list[int]:
    sources = [each % rank for each in (source if isinstance(source, (list, tuple)) else [source])]
    targets = [each % rank for each in (destination if isinstance(destination, (list, tuple)) else [destination])]
    by_target = dict(zip(targets, sources, strict=True))
    rest = iter([each for each in range(rank) if each not in sources])
    return [by_target[place] if place in by_target else next(rest) for place in range(rank)]


RULES = (drop_regrouping, reshape_form, reshape_of_view, permute_form, drop_whole, slice_of_slice, expand_form)
