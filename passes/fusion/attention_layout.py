"""How the operands of spelled-out attention lie: transposed, scaled, with batch and heads joined or apart.

Nothing here changes a graph before `View.insert`, `Heads.split` and `Heads.shaped`: a match can be refused until then.

Not handled: heads that are joined in one way and split in another, and heads joined between products of 4 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import same_shape, same_type, shape_of
from burnish.passes.fusion.matching import calls, factors, number_of
from burnish.passes.fusion.scores import Refusal, keeps_matrices

__all__ = ["Heads", "View", "heads_of_operands", "heads_of_scores", "read_operand", "swaps", "view_of"]

_Shape = tuple[int | torch.SymInt, ...]


@dataclass(frozen=True, slots=True)
class View:
    """`source` with its dimensions in the order `dims`, for which there is no node yet."""

    source: fx.Node
    dims: tuple[int, ...]

    @property
    def shape(self) -> _Shape:
        """The sizes in the order of `dims`."""
        sizes = shape_of(self.source) or ()
        return tuple(sizes[each] for each in self.dims)

    def insert(self, anchor: fx.Node, rewriter: Rewriter) -> fx.Node:
        """Return the node of the view, made before `anchor` where it is not the source itself."""
        if self.dims == tuple(range(len(self.dims))):
            return self.source
        return rewriter.insert(anchor, "aten.permute", (self.source, list(self.dims)))


@dataclass(frozen=True, slots=True)
class Heads:
    """Batch and heads that are joined in the operands [B * H, S, D] of products, and apart in the attention.

    Attributes:
        apart: the leading sizes where they are apart: [B, H].
        scores: the arguments of a reshape of the scores to [B, H, S, T]; empty where all operands have been split.
        joined: the arguments for the two leading sizes of the result [B * H, S, V]; empty where that is not joined.
    """

    apart: _Shape
    scores: Sequence[Any]
    joined: Sequence[Any]

    def split(self, view: View, keys: bool, anchor: fx.Node, rewriter: Rewriter) -> fx.Node:
        """Return an operand with batch and heads apart; `keys` tells whether its rows are keys."""
        if len(view.dims) == 4:
            return view.insert(anchor, rewriter)
        apart = _split_source(view, self.apart)
        if apart is not None:
            return apart
        sizes = [*self.scores[:2], self.scores[3 if keys else 2], view.shape[-1]]
        return rewriter.insert(anchor, "aten.reshape", (view.insert(anchor, rewriter), sizes))

    def shaped(self, joined: bool, term: fx.Node, anchor: fx.Node, rewriter: Rewriter) -> fx.Node:
        """Return a mask or bias with batch and heads apart; `joined` tells whether its scores have them joined."""
        shape = shape_of(term) or ()
        if not joined or len(shape) < 3 or shape[0] == 1:
            return term
        sizes = [1 if size == 1 else whole for size, whole in zip(shape[1:], self.scores[2:], strict=True)]
        return rewriter.insert(anchor, "aten.reshape", (term, [*self.scores[:2], *sizes]))


def swaps(node: Any) -> bool:
    """Tell whether `node` transposes the last two dimensions."""
    if not calls(node, "aten.permute"):
        return False
    rank = len(shape_of(node) or ())
    return tuple(each % rank for each in arguments(node)["dims"]) == _swapped(rank)


def view_of(node: fx.Node, swap: bool = False) -> View:
    """Return the view `node`, or its last two dimensions transposed, of what no permute made."""
    rank = len(shape_of(node) or ())
    view = View(node, _swapped(rank) if swap else tuple(range(rank)))
    while calls(view.source, "aten.permute"):
        inner = [each % rank for each in arguments(view.source)["dims"]]
        source = view.source.args[0]
        assert isinstance(source, fx.Node)
        view = View(source, tuple(inner[each] for each in view.dims))
    return view


def read_operand(node: fx.Node, rewriter: Rewriter, swap: bool = False) -> tuple[View, float]:
    """Return `node` as a view (of its last two dimensions transposed, with `swap`) times a number."""
    view, scale = view_of(node, swap), 1.0
    while (found := _unscaled(view.source, rewriter)) is not None:
        scale *= found[1]
        inner = view_of(found[0])
        view = View(inner.source, tuple(inner.dims[each] for each in view.dims))
    return view, scale


def heads_of_scores(regroups: Sequence[fx.Node], result: fx.Node) -> Heads:
    """Return how the reshapes of scores and weights, the last first, join and split heads around `result`.

    Raises:
        Refusal: not in one way, or with products of 4 dimensions.
    """
    splits = [each for each in regroups if len(shape_of(each) or ()) == 4]
    joins = [each for each in regroups if len(shape_of(each) or ()) == 3]
    wholes = [*splits, *(each.args[0] for each in joins)]
    # Between two products of 3 dimensions there is a split for every join, and one more where the result is whole.
    rank = len(shape_of(result) or ())
    if len(splits) != len(joins) + rank - 3:
        raise Refusal("its heads are joined between products that have them apart")
    apart = (shape_of(wholes[0]) or ())[:2]
    if not all(same_shape((shape_of(each) or ())[:2], apart) for each in wholes):
        raise Refusal("its heads are joined in one way and split in another")
    return Heads(apart, arguments(splits[0])["shape"], arguments(joins[0])["shape"] if rank == 3 else ())


def heads_of_operands(views: Sequence[View]) -> Heads | None:
    """Return how query, key and value join the same heads; None where they do not."""
    query = views[0].source
    if len(views[0].dims) != 3 or not calls(query, "aten.reshape"):
        return None
    apart = (shape_of(query.args[0]) or ())[:2]
    if any(_split_source(view, apart) is None for view in views):
        return None
    return Heads(apart, (), arguments(query)["shape"])


def _split_source(view: View, apart: _Shape) -> fx.Node | None:
    """Return what `view` joined batch and heads of, where their sizes are `apart`."""
    source = view.source
    if not calls(source, "aten.reshape") or view.dims != (0, 1, 2) or not keeps_matrices(source.args[0], source):
        return None
    whole = source.args[0]
    return whole if isinstance(whole, fx.Node) and same_shape((shape_of(whole) or ())[:-2], apart) else None


def _unscaled(node: fx.Node, rewriter: Rewriter) -> tuple[fx.Node, float] | None:
    """Return what `node` scales by a number, and the number."""
    readings = [(a, number_of(b, rewriter)) for a, b in factors(node)]
    if calls(node, "aten.div.Tensor", "aten.div.Scalar"):
        divisor = number_of(node.args[1], rewriter)
        readings.append((node.args[0], 1.0 / divisor if divisor else None))
    for inner, number in readings:
        if number is not None and isinstance(inner, fx.Node) and same_type(node, inner):
            return inner, number
    return None


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)
