"""The spellings of rotary position embedding: how pairs of features (a, b) become (a cos - b sin, b cos + a sin).

- x cos + y sin, where y is cat(-b, a) for pairs of halves, or stack(-b, a) of neighbours, and every angle stands twice;
- cat(a cos - b sin, b cos + a sin), or the same stacked, where every angle stands once.

Not handled: a sign that the sines bring; neighbours that are put together by cat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import is_number, same_shape, shape_of
from burnish.passes.fusion.matching import addends, calls, factors
from burnish.passes.fusion.view_chains import Atom, chain_of, layout_of, size_of

__all__ = ["Rotation", "doubled", "rotations_of"]

_DEPTH = 16
_TABLES = ("aten.index.Tensor", "aten.embedding", "aten.index_select")
_POINTWISE = (
    "aten.cos",
    "aten.sin",
    "aten.to.dtype",
    "aten.neg",
    "aten.mul.Tensor",
    "aten.add.Tensor",
    "aten.div.Tensor",
)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What is rotated by which angles.

    Attributes:
        first: a, [..., R].
        second: b.
        whole: x, where the spelling reads it.
        cos: the cosines, which broadcast to a, or to x where they are `doubled`.
        sin: the sines, likewise.
        doubled: every angle stands twice.
        interleaved: the features of a pair are neighbours.
        inner: the arithmetic that one operator replaces, without its last step.
    """

    first: fx.Node
    second: fx.Node
    whole: fx.Node | None
    cos: fx.Node
    sin: fx.Node
    doubled: bool
    interleaved: bool
    inner: tuple[fx.Node, ...]


def rotations_of(node: fx.Node) -> Iterator[Rotation]:
    """Yield the rotations that `node` may be the result of: features and angles can trade places in products."""
    if calls(node, "aten.add.Tensor"):
        yield from _of_whole(node)
        return
    paired = _paired(node)
    if paired is not None:
        one, other, interleaved, made = paired
        yield from _of_halves(one, other, interleaved, made[1:])


def doubled(angle: Any, interleaved: bool, rewriter: Rewriter, depth: int = _DEPTH) -> bool:
    """Tell whether the angles of a pair of features are always equal: the two halves of `angle`, or its neighbours."""
    constant = rewriter.constant(angle)
    if constant is not None:
        if constant.dim() == 0 or constant.size(-1) % 2:
            return False
        one, other = (constant[..., 0::2], constant[..., 1::2]) if interleaved else constant.chunk(2, -1)
        return torch.equal(one, other)
    if depth == 0 or not isinstance(angle, fx.Node) or angle.op != "call_function":
        return False
    chain = chain_of(angle)
    if len(chain) > 1:
        return _doubled_view(chain, interleaved, rewriter, depth)
    given = arguments(angle)
    if calls(angle, "aten.cat"):
        tensors, last = given["tensors"], len(shape_of(angle) or ()) - 1
        return not interleaved and len(tensors) == 2 and tensors[0] is tensors[1] and given["dim"] in (-1, last)
    if calls(angle, *_TABLES):
        table = given["weight" if calls(angle, "aten.embedding") else "self"]
        return _keeps_last(angle, given) and doubled(table, interleaved, rewriter, depth - 1)
    if not calls(angle, *_POINTWISE):
        return False
    # Numbers, and what is broadcast along the features, are the same for both of a pair.
    sources = [each for each in angle.all_input_nodes if (shape_of(each) or (1,))[-1] != 1]
    return all(doubled(each, interleaved, rewriter, depth - 1) for each in sources)


def _doubled_view(chain: list[fx.Node], interleaved: bool, rewriter: Rewriter, depth: int) -> bool:
    """Tell the same of the start of a chain of views."""
    base, layout = chain[-1], layout_of(chain)
    sizes = [size_of(size) for size in shape_of(base) or ()]
    last = layout.dims[-1] if layout is not None and layout.dims else ()
    if len(last) == 2:
        twice = last[1 if interleaved else 0]
        if twice == Atom(None, 0, 2):
            return True
        if not calls(base, "aten.stack"):
            return False
        given = arguments(base)
        dim, tensors = given["dim"] % len(sizes), given["tensors"]
        return twice == Atom(dim, 1, 2) and len(tensors) == 2 and tensors[0] is tensors[1]
    if not sizes or last != (Atom(len(sizes) - 1, 1, sizes[-1]),):
        return False
    return doubled(base, interleaved, rewriter, depth - 1)


def _keeps_last(node: fx.Node, given: dict[str, Any]) -> bool:
    """Tell whether a look-up in a table leaves the table's last dimension as it is."""
    table = shape_of(given["weight" if calls(node, "aten.embedding") else "self"]) or ()
    if calls(node, "aten.index.Tensor"):
        return len(given["indices"]) < len(table) and all(index is not None for index in given["indices"])
    return calls(node, "aten.embedding") or given["dim"] % len(table) != len(table) - 1


def _of_whole(node: fx.Node) -> Iterator[Rotation]:
    """Yield x cos + y sin, where y is x with the features of every pair exchanged."""
    for left, right in addends(node):
        for turned, sin in factors(right):
            paired = _paired(turned)
            if paired is None:
                continue
            minus, first, interleaved, made = paired
            second = _negated(minus)
            if second is None:
                continue
            for whole, cos in factors(left):
                if all(isinstance(each, fx.Node) for each in (whole, cos, sin)) and same_shape(
                    shape_of(whole), shape_of(node)
                ):
                    inner = (left, right, *made, minus)
                    yield Rotation(first, second, whole, cos, sin, True, interleaved, inner)


def _of_halves(one: fx.Node, other: fx.Node, interleaved: bool, made: tuple[fx.Node, ...]) -> Iterator[Rotation]:
    """Yield a cos - b sin beside b cos + a sin."""
    if not calls(one, "aten.sub.Tensor") or arguments(one)["alpha"] != 1:
        return
    minuend, subtrahend = one.args[:2]
    for first, cos in factors(minuend):
        for second, sin in factors(subtrahend):
            for left, right in addends(other):
                nodes = (first, second, cos, sin)
                reads = all(isinstance(each, fx.Node) for each in nodes) and same_shape(shape_of(first), shape_of(one))
                if reads and (second, cos) in factors(left) and (first, sin) in factors(right):
                    inner = (*made, one, other, minuend, subtrahend, left, right)
                    yield Rotation(first, second, None, cos, sin, False, interleaved, inner)


def _paired(node: Any) -> tuple[fx.Node, fx.Node, bool, tuple[fx.Node, ...]] | None:
    """Return the two tensors that have one feature of every pair in `node`, whether they lie side by side, and how."""
    shape = shape_of(node)
    if not shape:
        return None
    if calls(node, "aten.cat"):
        given = arguments(node)
        tensors, interleaved = given["tensors"], False
        made: tuple[fx.Node, ...] = (node,)
        if given["dim"] not in (-1, len(shape) - 1):
            return None
    elif calls(node, "aten.reshape", "aten.flatten.using_ints") and calls(node.args[0], "aten.stack"):
        stack = node.args[0]
        stacked, given = shape_of(stack) or (), arguments(stack)
        tensors, interleaved, made = given["tensors"], True, (node, stack)
        half = stacked[-2] if len(stacked) > 1 else None
        if given["dim"] not in (-1, len(stacked) - 1) or not isinstance(half, int):
            return None
        if not same_shape(shape, (*stacked[:-2], 2 * half)):
            return None
    else:
        return None
    if len(tensors) != 2 or not same_shape(shape_of(tensors[0]), shape_of(tensors[1])):
        return None
    return tensors[0], tensors[1], interleaved, made


def _negated(node: fx.Node) -> fx.Node | None:
    """Return x where `node` is -x."""
    found: Any = node.args[0] if calls(node, "aten.neg") else None
    for value, number in factors(node):
        found = value if is_number(number, -1) else found
    return found if isinstance(found, fx.Node) else None
