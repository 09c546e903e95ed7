"""Rules: attention between head splits and merges becomes multi_head_attention over tokens [B, S, heads * D].

Queries, keys and values may be any views of tokens: reshape and permute, one projection that is split or unbound,
[S, B, heads * D] as nn.MultiheadAttention has it; keys and values that are repeated for groups of heads are read
unrepeated. What merges the heads again goes too. A linear layer whose result is transposed reads its input so, and a
norm or a scale of heads that were transposed comes before that.

Not handled: keys or values that are held head by head ([B, H, T, D], a cache); a result that is used so; a dynamic
number or size of heads; dropout; more than 4 dimensions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import same_type, shape_of
from burnish.passes.fusion.matching import calls, erase_unused, factors, number_of
from burnish.passes.fusion.rearrangements import Rearrangement, permuted, rearrangement
from burnish.passes.fusion.view_chains import (
    Atom,
    Dim,
    Layout,
    Size,
    chain_of,
    dim_of,
    layout_of,
    size_of,
    size_of_dim,
)

__all__ = ["RULES", "Tokens", "tokens_of"]

# How many views of an attention's result are followed, one of the other.
_VIEWS = 8
# A view, the views before it, and how tokens make it.
_End = tuple[list[fx.Node], Rearrangement]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens [batch, S, heads * size] that a tensor [batch, heads * repeats, S, size] is made of.

    Attributes:
        base: the tensor that has them.
        made: how they are made of it.
        batch: the batch size.
        heads: the number of heads.
        repeats: how often each head is repeated in the tensor.
    """

    base: fx.Node
    made: Rearrangement
    batch: Size
    heads: int
    repeats: int

    def insert(self, anchor: fx.Node, rewriter: Rewriter) -> fx.Node:
        """Return the node of the tokens, inserted before `anchor` where it is not there yet."""
        return self.made.insert(self.base, anchor, rewriter)


@rule("aten.scaled_dot_product_attention")
def attention_over_tokens(node: fx.Node, rewriter: Rewriter) -> None:
    """Attention of heads that are split from tokens, and merged again, is multi_head_attention."""
    given = arguments(node)
    shapes = [shape_of(given[name]) for name in ("query", "key", "value")]
    rank = len(shapes[0] or ())
    if rank not in (3, 4) or any(len(shape or ()) != rank for shape in shapes):
        return
    try:
        parts = _operands(given, rank)
        kwargs = _options(given, parts)
        ends = _ends(node, parts["query"])
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    tokens = [part.insert(node, rewriter) for part in parts.values()]
    mask = given["attn_mask"]
    if mask is not None and rank == 3 and len(shape_of(mask) or ()) == 3:
        mask = rewriter.insert(node, "aten.unsqueeze", (mask, 1))
    args = tuple(tokens) if mask is None else (*tokens, mask)
    whole = node if rank == 3 and parts["query"].heads == 1 else None
    whole = next((views[0] for views, made in ends if made.count == 0), whole)
    origins = [view for views, _ in ends for view in views]
    fused = rewriter.replace(node, "burnish.multi_head_attention", args, kwargs, origins=origins, like=whole)
    for views, made in ends:
        made.replace(views[0], fused, rewriter)
    made_anew = {views[0] for views, _ in ends}
    erase_unused(rewriter, [view for view in origins if view not in made_anew])
    erase_unused(rewriter, [given["query"], given["key"], given["value"]])


@rule("aten.permute")
def linear_in_token_order(node: fx.Node, rewriter: Rewriter) -> None:
    """permute(linear(x)) is linear(permute(x)), and linear(y) where x is y with the opposite permute.

    It pays where the layer has no fewer outputs than inputs, or where the two permutes cancel.
    """
    layer, order = node.args[0], list(arguments(node)["dims"])
    if not isinstance(layer, fx.Node) or not calls(layer, "aten.linear") or AffineLayer.of(layer) is None:
        return
    if order[-1] != len(order) - 1:
        return
    given = arguments(layer)
    inner, weight = given["input"], shape_of(given["weight"]) or (0, 0)
    if calls(inner, "aten.permute"):
        before = list(arguments(inner)["dims"])
        inner, order = inner.args[0], [before[dim] for dim in order]
    cancel = order == sorted(order)
    if not cancel and weight[0] < weight[1]:
        rewriter.skip(node, "the linear layer has fewer outputs than inputs, so that these would take longer")
        return
    if len(layer.users) != 1:
        rewriter.skip(node, f"the linear layer has {len(layer.users)} users")
        return
    source = inner if cancel else permuted(inner, order, layer, rewriter)
    args = (source, given["weight"]) if given["bias"] is None else (source, given["weight"], given["bias"])
    rewriter.replace(node, "aten.linear", args, {}, origins=[layer], same_type=True)
    erase_unused(rewriter, [layer])


@rule("aten.layer_norm", "aten.rms_norm")
def norm_before_transposition(node: fx.Node, rewriter: Rewriter) -> None:
    """The norm of every head after heads [B, S, H, D] were transposed to [B, H, S, D] is the transposed norm."""
    given = arguments(node)
    inner = given["input"]
    if not calls(inner, "aten.permute") or list(arguments(inner)["dims"]) != [0, 2, 1, 3]:
        return
    if len(given["normalized_shape"]) != 1:
        return
    if len(inner.users) != 1:
        rewriter.skip(node, f"what it normalizes has {len(inner.users)} users")
        return
    args = (inner.args[0], *node.args[1:])
    norm = rewriter.insert(node, node.target, args, dict(node.kwargs), origins=[node])
    rewriter.replace(node, "aten.permute", (norm, [0, 2, 1, 3]), {}, origins=[inner], same_type=True)
    erase_unused(rewriter, [inner])


@rule("aten.mul.Tensor")
def scale_before_transposition(node: fx.Node, rewriter: Rewriter) -> None:
    """Heads [B, S, H, D] that are transposed to [B, H, S, D] and scaled by a number are scaled before that."""
    for inner, number in factors(node):
        if not calls(inner, "aten.permute") or list(arguments(inner)["dims"]) != [0, 2, 1, 3]:
            continue
        if number_of(number, rewriter) is None or not same_type(node, inner):
            continue
        if len(inner.users) != 1:
            rewriter.skip(node, f"what it scales has {len(inner.users)} users")
            return
        scaled = rewriter.insert(node, "aten.mul.Tensor", (inner.args[0], number), like=inner.args[0], origins=[node])
        rewriter.replace(node, "aten.permute", (scaled, [0, 2, 1, 3]), {}, origins=[inner], same_type=True)
        erase_unused(rewriter, [inner])
        return


def tokens_of(base: fx.Node, starts: Sequence[Size], batch: Dim, sequence: Dim, heads: Dim, size: Dim) -> Tokens | None:
    """Return the tokens that lie in `base`, or None where it holds them head by head.

    Args:
        base: what the atoms walk.
        starts: where the tokens start in it.
        batch: atoms of the batch, as are those of `sequence`, `heads` (repeats last) and `size`.
    """
    own = tuple(atom for atom in heads if atom.dim is not None)
    repeats, count = size_of_dim(heads[len(own) :]), size_of_dim(own)
    if heads[: len(own)] != own or not isinstance(count, int) or not isinstance(repeats, int):
        return None
    sizes = [size_of(each) for each in shape_of(base) or ()]
    made = rearrangement(sizes, Layout((batch, sequence, (*own, *size)), tuple(starts)))
    return Tokens(base, made, size_of_dim(batch), count, repeats) if made is not None and made.kept else None


def _operands(given: dict[str, Any], rank: int) -> dict[str, Tokens]:
    """Return the tokens of query, key and value.

    Raises:
        Refusal: one is not made of tokens.
    """
    names, mask = ("query", "key", "value"), shape_of(given["attn_mask"]) or ()
    if rank == 3 and (len(mask) < 3 or mask[0] == 1):
        with contextlib.suppress(Refusal):
            parts = {name: _operand(given[name], name, joined=True) for name in names}
            if len({(part.batch, part.heads * part.repeats) for part in parts.values()}) == 1:
                return parts
    return {name: _operand(given[name], name) for name in names}


def _operand(node: fx.Node, name: str, joined: bool = False) -> Tokens:
    """Return the tokens that a query, key or value is made of; `joined` has batch and heads in its first dimension.

    Raises:
        Refusal: it is made of none.
    """
    shape = shape_of(node) or ()
    if not isinstance(shape[-1], int) or (len(shape) == 4 and not isinstance(shape[1], int)):
        raise Refusal(f"the number or size of the {name}'s heads is dynamic")
    best: tuple[int, Tokens] | None = None
    chain = chain_of(node)
    for length in range(1, len(chain) + 1):
        layout = layout_of(chain[:length])
        if layout is None:
            continue
        batch, *rest, sequence, size = layout.dims
        heads = rest[0] if rest else ()
        if joined:
            batch, heads = _apart(batch, size)
        found = tokens_of(chain[length - 1], layout.starts, batch, sequence, heads, size)
        # What is between the base and the start of the chain stays.
        count = len(chain) - length + (found.made.count if found is not None else 0)
        if found is None:
            continue
        # A permute of something larger serves several.
        if best is None or count < best[0] + int(found.made.order is not None):
            best = count, found
    if best is None:
        raise Refusal(f"the {name} is made head by head")
    return best[1]


def _apart(both: Dim, size: Dim) -> tuple[Dim, Dim]:
    """Return the atoms of the batch and of the heads: these walk the dimension that has the features of a head."""
    first = len(both)
    while first and both[first - 1].dim in (None, size[-1].dim if size else None):
        first -= 1
    return both[:first], both[first:]


def _options(given: dict[str, Any], parts: dict[str, Tokens]) -> dict[str, Any]:
    """Return the keyword arguments of the operator.

    Raises:
        Refusal: it has no way to say what attention with the arguments `given` does.
    """
    query, key, value = parts["query"], parts["key"], parts["value"]
    if given["dropout_p"] != 0.0:
        raise Refusal(f"dropout_p is {given['dropout_p']}")
    if len({query.batch, key.batch, value.batch}) != 1:
        raise Refusal("query, key and value have several batch sizes")
    if query.repeats != 1:
        raise Refusal("the heads of the query repeat")
    if key.heads != value.heads or query.heads % key.heads != 0:
        raise Refusal(f"{key.heads} heads of the key and {value.heads} of the value serve {query.heads} of the query")
    scale, shape = given["scale"], shape_of(given["query"])
    if scale is None and shape is not None:
        scale = 1.0 / math.sqrt(shape[-1])
    elif not isinstance(scale, int | float):
        raise Refusal("its scale is computed")
    options = {"heads": query.heads, "kv_heads": key.heads, "scale": float(scale)}
    return options | ({"causal": True} if given["is_causal"] else {})


def _ends(node: fx.Node, query: Tokens) -> list[_End]:
    """Return the views of the attention `node` that other operators read, and how its tokens make them.

    Raises:
        Refusal: its tokens do not make one of them.
    """
    shape, heads = shape_of(node) or (), query.heads
    sequence, size = size_of(shape[-2]), shape[-1]
    assert isinstance(size, int)
    both = (dim_of(Atom(0, 1, query.batch)), dim_of(Atom(2, size, heads)))
    leading = both if len(shape) == 4 else ((*both[0], *both[1]),)
    layout = Layout((*leading, dim_of(Atom(1, 1, sequence)), dim_of(Atom(2, 1, size))), (0, 0, 0))
    sizes = [query.batch, sequence, heads * size]

    def made(chain: list[fx.Node]) -> Rearrangement | None:
        found = layout_of(chain, layout)
        return None if found is None else rearrangement(sizes, found)

    ends = _ends_of([node], made)
    if ends is None:
        raise Refusal("its result is used head by head")
    return [end for end in ends if end[0]]


def _ends_of(chain: list[fx.Node], made: Callable[[list[fx.Node]], Rearrangement | None]) -> list[_End] | None:
    """Return the ends of the views that start with `chain`; None where tokens do not make one of them.

    Args:
        chain: a view of the attention, the views before it, and the attention.
        made: returns how tokens make the view at the start of a chain.
    """
    view, own = chain[0], made(chain)
    whole: list[_End] | None = None if own is None else [(chain[:-1], own)]
    # The attention has no other shape to be replaced in.
    whole = None if own is not None and len(chain) == 1 and own.count else whole
    if (own is not None and own.count == 0) or len(chain) > _VIEWS:
        return whole
    further = [user for user in view.users if chain_of(user)[1:2] == [view]]
    ends: list[_End] = [] if len(further) == len(view.users) else whole or []
    if not further or (not ends and len(further) != len(view.users)):
        return whole
    for user in further:
        found = _ends_of([user, *chain], made)
        if found is None:
            return whole
        ends = [*ends, *found]
    return ends


RULES = (attention_over_tokens, linear_in_token_order, norm_before_transposition, scale_before_transposition)
