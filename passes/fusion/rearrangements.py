"""The fewest operators that make a wanted layout of a tensor: one permute, slices, one reshape.

Not handled: layouts that take another order of what one dimension holds, or repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import same_shape, shape_of
from burnish.passes.fusion.matching import calls, erase_unused
from burnish.passes.fusion.view_chains import Layout, Size, joined, size_of_dim

__all__ = ["Rearrangement", "permuted", "rearrangement", "shared"]


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """Operators that make a tensor of another: a permute, then slices, then a reshape, each where it is needed.

    Attributes:
        order: the order of dimensions; None for the order that is there.
        slices: (dimension after the permute, start, end).
        shape: sizes of the reshape, numbers or (for what is dynamic) dimensions that have the size before the reshape,
            as -1 - dimension; None for no reshape.
        kept: the dimensions that hold the last dimension of the result keep their places.
    """

    order: tuple[int, ...] | None
    slices: tuple[tuple[int, int, int], ...]
    shape: tuple[int, ...] | None
    kept: bool

    @property
    def count(self) -> int:
        """How many operators it takes."""
        return int(self.order is not None) + len(self.slices) + int(self.shape is not None)

    def insert(self, base: fx.Node, anchor: fx.Node, rewriter: Rewriter) -> fx.Node:
        """Return the node for the rearranged `base`, inserted before `anchor`."""
        node = base
        if self.order is not None:
            node = permuted(base, self.order, anchor, rewriter)
        for dim, start, end in self.slices:
            shape = [*(shape_of(node) or ())]
            shape[dim] = end - start
            node = shared(node, "aten.slice.Tensor", (dim, start, end), shape, anchor, rewriter)
        if self.shape is None:
            return node
        sizes: list[Any] = list(self.shape)
        dynamic = [index for index, size in enumerate(sizes) if size < 0]
        for index in dynamic:
            one = len(dynamic) == 1
            sizes[index] = (
                -1 if one else shared(node, "aten.sym_size.int", (-1 - sizes[index],), None, anchor, rewriter)
            )
        return shared(node, "aten.reshape", (sizes,), None, anchor, rewriter)

    def replace(self, node: fx.Node, base: fx.Node, rewriter: Rewriter) -> None:
        """Replace `node` by the rearranged `base`."""
        made = self.insert(base, node, rewriter)
        if made is base:
            rewriter.replace(node, base)
            return
        # The last operator takes over the name.
        rewriter.replace(node, made.target, made.args, dict(made.kwargs), origins=[made], same_type=True)
        erase_unused(rewriter, [made])


def rearrangement(sizes: Sequence[Size], wanted: Layout) -> Rearrangement | None:
    """Return the operators that make a layout of a tensor of `sizes`; None where it takes more than these."""
    dims = wanted.dims
    runs = joined([atom for dim in dims for atom in dim])
    if any(run.dim is None or run.stride != 1 for run in runs):
        return None
    used = [run.dim for run in runs if run.dim is not None]
    if len(set(used)) != len(used):
        return None
    lengths: list[Size] = [1] * len(sizes)
    for run in runs:
        lengths[run.dim or 0] = run.size
    places, order = sorted(used), list(range(len(sizes)))
    for place, dim in zip(places, used, strict=True):
        order[place] = dim
    slices = []
    for dim, (start, length, size) in enumerate(zip(wanted.starts, lengths, sizes, strict=True)):
        if length == size:
            continue
        if not isinstance(start, int) or not isinstance(length, int):
            return None
        slices.append((order.index(dim), start, start + length))
    permuted = [lengths[dim] for dim in order]
    shape = [size_of_dim(dim) for dim in dims]
    regrouped = _sizes(shape, permuted)
    if regrouped is None:
        return None
    last = {atom.dim for atom in (dims[-1] if dims else ())}
    return Rearrangement(
        None if order == sorted(order) else tuple(order),
        tuple(slices),
        None if shape == permuted else regrouped,
        all(dim is None or order[dim] == dim for dim in last),
    )


def permuted(node: fx.Node, order: Sequence[int], anchor: fx.Node, rewriter: Rewriter) -> fx.Node:
    """Return `node` in another order of dimensions, inserted before `anchor` where it is not there yet."""
    sizes = shape_of(node) or ()
    return shared(node, "aten.permute", (list(order),), [sizes[dim] for dim in order], anchor, rewriter)


def shared(
    node: fx.Node,
    operator: str,
    args: tuple[Any, ...],
    shape: Sequence[int | torch.SymInt] | None,
    anchor: fx.Node,
    rewriter: Rewriter,
) -> fx.Node:
    """Return `operator` on `node` and `args`: one before `anchor` that is there, or a new one.

    Args:
        node: its first argument.
        operator: its name.
        args: the other arguments.
        shape: the shape of the result; None where the arguments say it whatever shape `node` has.
        anchor: where to insert it.
        rewriter: inserts it.
    """
    # The latest users come first: what a match before this one has made is found without a look at all others.
    for user in reversed(node.users):
        # The type of a user may be that before a rule replaced its input.
        found = calls(user, operator) and user < anchor and user.args == (node, *args) and not user.kwargs
        if found and (shape is None or same_shape(shape_of(user), shape)):
            return user
    return rewriter.insert(anchor, operator, (node, *args))


def _sizes(wanted: Sequence[Size], present: Sequence[Size]) -> tuple[int, ...] | None:
    """Return `wanted` as `Rearrangement.shape`, whose dynamic sizes are among those `present`, or at most one."""
    dynamic = [size for size in wanted if not isinstance(size, int)]
    result = []
    for size in wanted:
        if isinstance(size, int):
            result.append(size)
        elif size in present:
            result.append(-1 - present.index(size))
        elif len(dynamic) == 1:
            result.append(-1)
        else:
            return None
    # With a size of 0 beside it, -1 could stand for anything.
    return None if 0 in result else tuple(result)
