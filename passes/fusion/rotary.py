"""Rules: rotary position embedding, in the spellings of `rotations`, becomes one operator over tokens.

The result is split into heads again, which attention over tokens takes away. Where only the first features of a head
are rotated and the others are concatenated behind, that is one operator too. Angles [S, R] are stored once for all
layers that read the same ones. Pairs that are rotated as complex numbers become real arithmetic first.

Not handled: angles that differ between heads, or whose two halves are not known to be equal; what is held head by head
([B, H, S, D]); queries and keys in one tensor of 5 dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import same_shape, shape_of, tensor_of
from burnish.passes.fusion.heads import Tokens, tokens_of
from burnish.passes.fusion.matching import calls, erase_unused, factors, only_user
from burnish.passes.fusion.rearrangements import rearrangement, shared
from burnish.passes.fusion.rotations import Rotation, doubled, rotations_of
from burnish.passes.fusion.view_chains import (
    Atom,
    Layout,
    Size,
    chain_of,
    dim_of,
    layout_of,
    size_of,
    size_of_dim,
)

__all__ = ["RULES"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Which dimensions of what is rotated are batch, sequence and heads; None for what it does not have."""

    batch: int | None
    sequence: int
    heads: int | None


@dataclass(frozen=True, slots=True)
class _Match:
    """`root` is tokens with the features of their heads rotated, split into heads as `place` says.

    `rest` are those that it concatenates behind the rotated ones.
    """

    root: fx.Node
    rest: fx.Node | None
    tokens: Tokens
    place: _Place


@rule("aten.add.Tensor", "aten.cat", "aten.reshape", "aten.flatten.using_ints")
def rotary_embedding(node: fx.Node, rewriter: Rewriter) -> None:
    """The sum x cos + rotate_half(x) sin, with x split from tokens, is rotary_embedding of them, split again."""
    reason = None
    for found in rotations_of(node):
        try:
            _check(node, found)
            match = _match(node, found, rewriter)
        except Refusal as refusal:
            reason = reason or str(refusal)
            continue
        _replace(node, found, match, rewriter)
        return
    if reason is not None:
        rewriter.skip(node, reason)


@rule("aten.view_as_real")
def complex_rotation(node: fx.Node, rewriter: Rewriter) -> None:
    """Pairs that are multiplied as complex numbers are rotated by real arithmetic, which the other rule takes."""
    product = node.args[0]
    for pairs, turn in factors(product):
        shape, angles = shape_of(turn), tensor_of(turn)
        if not calls(pairs, "aten.view_as_complex") or angles is None or shape is None or not angles.is_complex():
            continue
        assert isinstance(product, fx.Node)
        inner, source = [product, pairs], pairs.args[0]
        if any(len(each.users) != 1 for each in inner):
            rewriter.skip(node, "what it multiplies as complex numbers has several users")
            return
        cos, sin = _parts(turn, node, rewriter)
        a, b = (rewriter.insert(node, "aten.select.int", (source, -1, index)) for index in (0, 1))
        made = []
        for operator, (one, other) in (("aten.sub.Tensor", (a, b)), ("aten.add.Tensor", (b, a))):
            left = rewriter.insert(node, "aten.mul.Tensor", (one, cos), like=a)
            right = rewriter.insert(node, "aten.mul.Tensor", (other, sin), like=a)
            made.append(rewriter.insert(node, operator, (left, right), like=a))
        rewriter.replace(node, "aten.stack", (made, -1), {}, origins=inner, same_type=True)
        erase_unused(rewriter, [product])
        return


def _replace(node: fx.Node, found: Rotation, match: _Match, rewriter: Rewriter) -> None:
    """Replace the rotation `node`, and what concatenates features behind it, by the operator."""
    cos, sin = (_angles(angle, found, match.place, node, rewriter) for angle in (found.cos, found.sin))
    tokens = match.tokens.insert(node, rewriter)
    kwargs: dict[str, Any] = {"heads": match.tokens.heads} | ({"interleaved": True} if found.interleaved else {})
    origins = [node, *found.inner]
    rotated = rewriter.insert(
        match.root, "burnish.rotary_embedding", (tokens, cos, sin), kwargs, origins=origins, like=tokens
    )
    _split(match, rotated, rewriter)
    erase_unused(rewriter, found.inner if match.rest is None else [node, match.rest])


def _parts(turn: fx.Node, node: fx.Node, rewriter: Rewriter) -> tuple[fx.Node, fx.Node]:
    """Return the real and the imaginary part of complex angles."""
    constant = rewriter.constant(turn)
    if constant is not None:
        values = (constant.real.contiguous(), constant.imag.contiguous())
        real, imag = (
            _stored(f"{turn.target}.{name}", value, turn, rewriter)
            for name, value in zip(("real", "imag"), values, strict=True)
        )
        return real, imag
    both = shared(turn, "aten.view_as_real", (), None, node, rewriter)
    shape = shape_of(turn)
    cos, sin = (shared(both, "aten.select.int", (-1, index), shape, node, rewriter) for index in (0, 1))
    return cos, sin


def _check(node: fx.Node, found: Rotation) -> None:
    """Raise Refusal where the operator computes something else, or something is read elsewhere."""
    for inner in found.inner:
        if len(inner.users) != 1:
            raise Refusal(f"{inner.meta['name']} has {len(inner.users)} users")
    values = [tensor_of(each) for each in (node, found.first, found.cos, found.sin)]
    if len({None if value is None else value.dtype for value in values}) != 1:
        raise Refusal("its angles have another type than what it rotates")
    if not same_shape(shape_of(found.cos), shape_of(found.sin)):
        raise Refusal("its sines have another shape than its cosines")


def _match(node: fx.Node, found: Rotation, rewriter: Rewriter) -> _Match:
    """Return the tokens that are rotated.

    Raises:
        Refusal: there are none, or the angles do not fit.
    """
    shape, angles = shape_of(node) or (), shape_of(found.cos) or ()
    width = angles[-1] if angles else 1
    half = (shape_of(found.first) or (0,))[-1]
    if not isinstance(half, int) or width != (2 * half if found.doubled else half):
        raise Refusal("its angles are not as many as the features")
    aligned = (1,) * (len(shape) - len(angles)) + tuple(angles)
    places = [place for place in _places(len(shape)) if place.heads is None or aligned[place.heads] == 1]
    if not places:
        raise Refusal("its angles differ between heads")
    for angle in (found.cos, found.sin):
        if found.doubled and not doubled(angle, found.interleaved, rewriter):
            raise Refusal(f"the two halves of {angle.meta['name']} are not known to be equal")
    parts = False
    for root, rest in [*_behind(node), (node, None)]:
        bases = list(_bases(found, rest))
        parts |= bool(bases)
        for place in places:
            best: tuple[int, Tokens] | None = None
            for before, base, whole in bases:
                batch, heads = (() if dim is None else whole.dims[dim] for dim in (place.batch, place.heads))
                tokens = tokens_of(base, whole.starts, batch, whole.dims[place.sequence], heads, whole.dims[-1])
                if tokens is None or tokens.repeats != 1:
                    continue
                if best is None or before + tokens.made.count < best[0]:
                    best = before + tokens.made.count, tokens
            if best is not None:
                return _Match(root, rest, best[1], place)
    if not parts:
        raise Refusal(f"it does not rotate {'neighbours' if found.interleaved else 'halves'} of one tensor's features")
    raise Refusal("what it rotates is made head by head")


def _places(rank: int) -> list[_Place]:
    if rank == 4:
        return [_Place(0, 2, 1), _Place(0, 1, 2)]
    return [_Place(None, 0, 1), _Place(0, 1, None)] if rank == 3 else []


def _behind(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield what concatenates other features of the head behind those of `node`, and these."""
    user = only_user(node)
    if user is not None and calls(user, "aten.cat"):
        given, rank = arguments(user), len(shape_of(node) or ())
        tensors = given["tensors"]
        if len(tensors) == 2 and tensors[0] is node and given["dim"] % rank == rank - 1:
            yield user, tensors[1]


def _bases(found: Rotation, rest: fx.Node | None) -> Iterator[tuple[int, fx.Node, Layout]]:
    """Yield every tensor of which the whole heads are a view: how many views it is made by, it, and their layout.

    Args:
        found: what is rotated.
        rest: the features behind, which are not; maybe none at all.
    """
    rest = None if rest is not None and (shape_of(rest) or (0,))[-1] == 0 else rest
    nodes = [node for node in (found.first, found.second, found.whole, rest) if node is not None]
    chains = [chain_of(node) for node in nodes]
    for index, base in enumerate(chains[0]):
        if not all(base in chain for chain in chains):
            continue
        layouts = [layout_of(chain[: chain.index(base) + 1]) for chain in chains]
        first, second, *others = (layout for layout in layouts if layout is not None)
        if len(others) + 2 != len(layouts):
            continue
        whole = _paired(first, second, found.interleaved)
        if whole is None or (found.whole is not None and others.pop(0) != whole):
            continue
        if others:
            whole = _followed(whole, others[0])
        if whole is not None:
            yield len(chains[0]) - 1 - index, base, whole


def _paired(first: Layout, second: Layout, interleaved: bool) -> Layout | None:
    """Return the layout of x, of whose pairs of features `first` and `second` have one each."""
    apart = [dim for dim, (one, other) in enumerate(zip(first.starts, second.starts, strict=True)) if one != other]
    if first.dims != second.dims or len(first.dims[-1]) > 1 or len(apart) != 1:
        return None
    dim = apart[0]
    distance = second.starts[dim] - first.starts[dim]
    if not first.dims[-1]:
        # The two features of one pair are halves and neighbours.
        return Layout((*first.dims[:-1], (Atom(dim, distance, 2),)), first.starts)
    atom = first.dims[-1][0]
    if atom.dim != dim:
        return None
    if interleaved and 2 * distance == atom.stride:
        return Layout((*first.dims[:-1], (Atom(atom.dim, distance, 2 * atom.size),)), first.starts)
    if not interleaved and distance == atom.stride * atom.size:
        return Layout((*first.dims[:-1], (Atom(atom.dim, atom.stride, 2 * atom.size),)), first.starts)
    return None


def _followed(whole: Layout, rest: Layout) -> Layout | None:
    """Return the layout of the features of `whole` and, behind them, those of `rest`."""
    atom = whole.dims[-1][0]
    after = rest.dims[-1]
    if whole.dims[:-1] != rest.dims[:-1] or atom.dim is None or len(after) > 1:
        return None
    size = size_of_dim(after)
    if after and (after[0].dim != atom.dim or after[0].stride != atom.stride):
        return None
    if _distance(whole, rest, atom.dim) != atom.stride * atom.size:
        return None
    return Layout((*whole.dims[:-1], (Atom(atom.dim, atom.stride, atom.size + size),)), whole.starts)


def _distance(a: Layout, b: Layout, dim: int) -> Size | None:
    """Return how far `b` starts behind `a` in `dim`; None where they differ in other dimensions."""
    others = [index for index in range(len(a.starts)) if index != dim and a.starts[index] != b.starts[index]]
    return None if others else b.starts[dim] - a.starts[dim]


def _angles(angle: fx.Node, found: Rotation, place: _Place, node: fx.Node, rewriter: Rewriter) -> fx.Node:
    """Return `angle` as [S, R], or [B, S, R] where it depends on the batch."""
    shape = shape_of(angle) or ()
    missing = len(shape_of(node) or ()) - len(shape)
    sequence = place.sequence - missing
    wanted = [sequence] if sequence >= 0 else []
    if place.batch is not None and missing == 0 and shape[place.batch] != 1:
        wanted.insert(0, place.batch)
    half = shape[-1] // 2 if found.doubled else shape[-1]
    step = 2 if found.doubled and found.interleaved else 1
    constant = rewriter.constant(angle)
    if constant is not None:
        sizes = [*(shape[dim] for dim in wanted), *([] if wanted else [1]), half]
        value = constant[..., : step * half : step].reshape(sizes).contiguous()
        return _stored(f"{angle.target}.angles", value, angle, rewriter)
    part = angle
    if found.doubled:
        end = (len(shape) - 1, 0, step * half, *((step,) if step > 1 else ()))
        part = shared(angle, "aten.slice.Tensor", end, [*shape[:-1], half], node, rewriter)
    present = [size_of(size) for size in shape_of(part) or ()]
    dims = [dim_of(Atom(dim, 1, present[dim])) for dim in [*wanted, len(present) - 1]]
    made = rearrangement(present, Layout((*(() if wanted else ((),)), *dims), (0,) * len(present)))
    assert made is not None
    return made.insert(part, node, rewriter)


def _stored(name: str, value: torch.Tensor, source: fx.Node, rewriter: Rewriter) -> fx.Node:
    """Return the node of a constant; one that an earlier match stored serves again."""
    known = rewriter.program.constants.get(name)
    if known is not None and known.dtype == value.dtype and torch.equal(known, value):
        return rewriter.constant_node(source.graph, name, [source])
    return rewriter.set_constant(source.graph, name, value, [source])


def _split(match: _Match, rotated: fx.Node, rewriter: Rewriter) -> None:
    """Replace the root by the rotated tokens, with the dimensions it has."""
    root, place, heads = match.root, match.place, match.tokens.heads
    batch, sequence, features = (size_of(size) for size in shape_of(rotated) or ())
    assert isinstance(features, int)
    size = features // heads
    dims = [dim_of(Atom(1, 1, sequence)), dim_of(Atom(2, 1, size))]
    if place.heads is not None:
        dims.insert(1, dim_of(Atom(2, size, heads)))
    if place.batch is not None:
        dims.insert(0, dim_of(Atom(0, 1, batch)))
    made = rearrangement([batch, sequence, features], Layout(tuple(dims), (0, 0, 0)))
    assert made is not None
    if place.heads is not None and place.heads < place.sequence:
        split = made.insert(rotated, root, rewriter)
        rewriter.replace(root, "aten.permute", (split, [0, 2, 1, 3]), {}, same_type=True)
    else:
        made.replace(root, rotated, rewriter)


RULES = (complex_rotation, rotary_embedding)
