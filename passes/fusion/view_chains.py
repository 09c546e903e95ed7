"""Where the elements of a view come from: every dimension as steps through the dimensions of the tensor it is made of.

`chain_of` walks from a node back through what only rearranges (reshape, permute, slice, select, split, unbind, expand
and the like), and `layout_of` says what the walk amounts to.

Not handled: slices of a dimension that is made of several; a walk of more than `_LENGTH` operators; sizes that do not
divide each other (reshape [4, 6] to [3, 8]).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import sympy
import torch
from torch import fx

from burnish.compiler.operators import arguments, find_operator
from burnish.passes.canonical.types import shape_of
from burnish.passes.fusion.matching import calls

__all__ = ["Atom", "Dim", "Layout", "Size", "chain_of", "dim_of", "joined", "layout_of", "size_of", "size_of_dim"]

Size: TypeAlias = int | sympy.Expr

_LENGTH = 16
_REGROUPS = {
    find_operator(name)
    for name in (
        "aten.reshape",
        "aten.flatten.using_ints",
        "aten.unflatten.int",
        "aten.unsqueeze",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
    )
}
_SPLITS = ("aten.split_with_sizes", "aten.split.Tensor", "aten.chunk")


class Atom(NamedTuple):
    """`size` steps of `stride` elements along dimension `dim` of the base; along none where `dim` is None: repeats."""

    dim: int | None
    stride: Size
    size: Size


Dim = tuple[Atom, ...]


class Layout(NamedTuple):
    """A view of a tensor: its dimensions, outer atoms first, and where it starts in every dimension of the tensor."""

    dims: tuple[Dim, ...]
    starts: tuple[Size, ...]


def chain_of(node: fx.Node) -> list[fx.Node]:
    """Return `node`, what it is a view of, what that is a view of, and so on."""
    chain = [node]
    while len(chain) <= _LENGTH:
        source = _source(chain[-1])
        if source is None:
            break
        chain.append(source)
    return chain


def layout_of(chain: Sequence[fx.Node], layout: Layout | None = None) -> Layout | None:
    """Return the first node of a chain as a view of the last; None where it cannot be told.

    Args:
        chain: as `chain_of` returns it.
        layout: the last node as a view of something else.
    """
    if layout is None:
        sizes = [size_of(size) for size in shape_of(chain[-1]) or ()]
        layout = Layout(tuple(dim_of(Atom(dim, 1, size)) for dim, size in enumerate(sizes)), (0,) * len(sizes))
    for node in reversed(chain[:-1]):
        following = _follow(node, layout)
        if following is None:
            return None
        layout = following
    return layout


def joined(atoms: Iterable[Atom]) -> Dim:
    """Return `atoms` with those in one that follow each other in the base."""
    result: list[Atom] = []
    for atom in atoms:
        before = result[-1] if result else None
        if before is not None and before.dim == atom.dim and before.stride == atom.stride * atom.size:
            result[-1] = Atom(atom.dim, atom.stride, before.size * atom.size)
        else:
            result.append(atom)
    return tuple(result)


def dim_of(*atoms: Atom) -> Dim:
    """Return the dimension that `atoms` make; those of one step make nothing."""
    return tuple(atom for atom in atoms if atom.size != 1)


def size_of(size: int | torch.SymInt) -> Size:
    """Return a size as a number or an expression of symbols."""
    return _plain(size) if isinstance(size, int) else _plain(size.node.expr)


def size_of_dim(dim: Dim) -> Size:
    """Return the number of elements along `dim`."""
    if not dim:
        return 1
    product = dim[0].size
    for atom in dim[1:]:
        product = product * atom.size
    return product


def _source(node: fx.Node) -> fx.Node | None:
    """Return what `node` is a view of."""
    if node.target is operator.getitem:
        several = node.args[0]
        return several.args[0] if calls(several, "aten.unbind.int", *_SPLITS) else None  # type: ignore[union-attr, return-value]
    known = ("aten.permute", "aten.expand", "aten.slice.Tensor", "aten.select.int", "aten.repeat_interleave.self_int")
    if node.target not in _REGROUPS and not calls(node, *known):
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None


def _follow(node: fx.Node, layout: Layout) -> Layout | None:
    """Return what `node` makes of a view with `layout`."""
    shape = shape_of(node)
    if shape is None:
        return None
    if node.target is operator.getitem:
        several, index = node.args
        return _part(several, index, layout) if isinstance(several, fx.Node) and isinstance(index, int) else None
    if node.target in _REGROUPS:
        return None if _squeezes_dynamic(node) else _regroup(layout, [size_of(size) for size in shape])
    found, rank = arguments(node), len(layout.dims)
    if calls(node, "aten.permute"):
        return Layout(tuple(layout.dims[dim] for dim in found["dims"]), layout.starts)
    if calls(node, "aten.expand"):
        return _expand(layout, [size_of(size) for size in shape])
    if rank == 0:
        return None
    if calls(node, "aten.repeat_interleave.self_int"):
        if found["dim"] is None or not isinstance(found["repeats"], int):
            return None
        dims = list(layout.dims)
        dims[found["dim"]] = (*dims[found["dim"]], *dim_of(Atom(None, 0, found["repeats"])))
        return Layout(tuple(dims), layout.starts)
    dim = found["dim"] % rank
    if calls(node, "aten.select.int"):
        return _select(layout, dim, found["index"])
    return _slice(layout, dim, found["start"] or 0, found["step"], size_of(shape[dim]))


def _part(several: fx.Node, index: int, layout: Layout) -> Layout | None:
    """Return the view that result `index` of an unbind or a split is."""
    dim = arguments(several)["dim"] % len(layout.dims)
    if calls(several, "aten.unbind.int"):
        return _select(layout, dim, index)
    sizes = [size_of(part.shape[dim]) for part in several.meta["val"]]
    return _slice(layout, dim, sum(sizes[:index]), 1, sizes[index])


def _regroup(layout: Layout, shape: Sequence[Size]) -> Layout | None:
    atoms = [atom for dim in layout.dims for atom in dim]
    dims: list[Dim] = []
    for size in reversed(shape):
        wanted, taken = size, list[Atom]()
        while wanted != 1:
            if not atoms:
                return None
            atom = atoms.pop()
            rest, inner = _quotient(wanted, atom.size), _quotient(atom.size, wanted)
            if rest is not None:
                taken.append(atom)
                wanted = rest
            elif inner is not None:
                atoms.append(Atom(atom.dim, atom.stride * wanted, inner))
                taken.append(Atom(atom.dim, atom.stride, wanted))
                wanted = 1
            else:
                return None
        dims.append(joined(reversed(taken)))
    return None if atoms else Layout(tuple(reversed(dims)), layout.starts)


def _expand(layout: Layout, shape: Sequence[Size]) -> Layout | None:
    new = len(shape) - len(layout.dims)
    dims: list[Dim] = []
    for index, size in enumerate(shape):
        dim = layout.dims[index - new] if index >= new else ()
        if not dim:
            dim = dim_of(Atom(None, 0, size))
        elif size_of_dim(dim) != size:
            return None
        dims.append(dim)
    return Layout(tuple(dims), layout.starts)


def _select(layout: Layout, dim: int, index: Any) -> Layout | None:
    if not isinstance(index, int):
        return None
    size = size_of_dim(layout.dims[dim])
    part = _slice(layout, dim, index if index >= 0 else size + index, 1, 1)
    return None if part is None else Layout((*part.dims[:dim], *part.dims[dim + 1 :]), part.starts)


def _slice(layout: Layout, dim: int, start: Any, step: Any, length: Size) -> Layout | None:
    atoms, starts = layout.dims[dim], list(layout.starts)
    size = size_of_dim(atoms)
    if not isinstance(start, int | sympy.Expr) or not isinstance(step, int) or length == 0:
        return None
    if isinstance(start, int) and start < 0:
        start = size + start
        if not isinstance(start, int) or start < 0:
            return None
    if length == size:
        return layout
    if len(atoms) != 1:
        return None
    atom = atoms[0]
    if atom.dim is not None:
        starts[atom.dim] = starts[atom.dim] + start * atom.stride
    part = dim_of(Atom(atom.dim, atom.stride * step, length))
    return Layout((*layout.dims[:dim], part, *layout.dims[dim + 1 :]), tuple(starts))


def _squeezes_dynamic(node: fx.Node) -> bool:
    """Tell whether `node` squeezes a dimension that may be 1 in a call, though its type is another."""
    sizes = shape_of(node.args[0]) or ()
    if not calls(node, "aten.squeeze.dim", "aten.squeeze.dims"):
        return False
    dims = arguments(node)["dim"]
    return any(not isinstance(sizes[dim], int) for dim in (dims if isinstance(dims, list | tuple) else [dims]))


@functools.lru_cache(maxsize=4096)
def _quotient(a: Size, b: Size) -> Size | None:
    """Return a / b where b divides a for all values of their symbols."""
    if b == 0 or a == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    numerator, denominator = sympy.fraction(sympy.cancel(sympy.sympify(a) / b))
    if denominator != 1:
        return None
    return _plain(numerator)


def _plain(size: Any) -> Size:
    return int(size) if isinstance(size, int) or size.is_Integer else size
