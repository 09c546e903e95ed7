"""Rules: attention masks that are constant, causal or all true are folded away.

What the mask of scaled_dot_product_attention holds is found by `index_analysis`. All true (zero, where it is added): no
mask. A query sees the keys up to its own place, as `is_causal` means it: that, and no mask. Else the mask is made as
small as broadcasting allows: without `expand`, without a side of a conjunction that is all true, as a constant of one
row where it is constant, and with rows that are gathered by number taken as they are.

Not handled: a causal mask together with another one, which one operator does not take; windows and blocks; masks that
depend on values, beyond the above; constants above one mebibyte; dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, is_random
from burnish.compiler.rewriter import Rewriter, rule
from burnish.compiler.sizes import expression
from burnish.passes.canonical.types import same_shape, shape_of, tensor_of
from burnish.passes.fusion.index_analysis import value_of
from burnish.passes.fusion.index_elementwise import is_elementwise
from burnish.passes.fusion.index_values import Choice, Grid, Linear, Value, linear_of
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_ATTENTION = "aten.scaled_dot_product_attention"
# Added to a score, what is below hides a key for good: exp(x) is 0 long before.
_HIDDEN = -1e30
_LARGEST_CONSTANT = 1 << 20
# Masks are a few operators deep.
_DEEPEST = 50

_AND = tuple(f"aten.{name}" for name in ("__and__.Tensor", "bitwise_and.Tensor", "logical_and", "mul.Tensor"))
_OR = tuple(f"aten.{name}" for name in ("__or__.Tensor", "bitwise_or.Tensor", "logical_or"))


@rule(_ATTENTION)
def attention_mask(node: fx.Node, rewriter: Rewriter) -> None:
    """A mask that hides nothing goes, a causal one is `is_causal`, and others get as small as they can be."""
    mask = _mask_of(node)
    if mask is None:
        return
    if not _fits(node):
        rewriter.skip(node, "its operands are broadcast, perhaps by its mask")
        return
    value = value_of(mask, rewriter)
    causal, new = False, None
    if not _hides_nothing(value):
        causal = _is_causal(node, value, rewriter)
        new = None if causal else _Smaller(rewriter, node).form(mask)
    if new is mask:
        if _causal_side(mask, rewriter):
            rewriter.skip(node, "its mask is causal and more, and is_causal takes no mask besides")
        return
    # All layers that read the mask at once: what replaces it is made once.
    for user in list(mask.users):
        reads = calls(user, _ATTENTION) and _mask_of(user) is mask and _fits(user)
        if reads and (not causal or _is_square(user, mask)):
            _replace(user, new, causal, rewriter)
    erase_unused(rewriter, [mask])


def _mask_of(node: fx.Node) -> fx.Node | None:
    given = arguments(node)
    mask = given["attn_mask"]
    return mask if isinstance(mask, fx.Node) and not given["is_causal"] and not is_random(node) else None


def _fits(node: fx.Node) -> bool:
    """Tell whether the result has the sizes that its queries give it."""
    query, result = shape_of(node.args[0]), shape_of(node)
    return query is not None and result is not None and same_shape(query[:-1], result[:-1])


def _replace(node: fx.Node, mask: fx.Node | None, causal: bool, rewriter: Rewriter) -> None:
    given = arguments(node)
    args = (given["query"], given["key"], given["value"], mask, given["dropout_p"], causal)
    kwargs = {name: given[name] for name in ("scale", "enable_gqa") if given[name] not in (None, False)}
    old = _mask_of(node)
    rewriter.replace(node, _ATTENTION, args, kwargs, origins=[] if old is None else [old], same_type=True)


def _hides_nothing(value: Value | None) -> bool:
    return isinstance(value, Grid) and value.uniform and _shows(value.tensor)


def _shows(tensor: torch.Tensor) -> bool:
    return bool(tensor.item() if tensor.dtype == torch.bool else tensor.item() == 0)


def _is_causal(node: fx.Node, value: Value | None, rewriter: Rewriter) -> bool:
    """Tell whether the query i sees the keys 0 to i; say what is wrong where that is nearly so."""
    if not isinstance(value, Choice) or value.equal or not _is_diagonal(value.form) or not _shows(value.yes):
        return False
    mask = _mask_of(node)
    if mask is None or not _is_square(node, mask):
        return False
    hidden = value.no.item()
    if value.no.dtype != torch.bool and hidden > _HIDDEN:
        rewriter.skip(node, f"its mask adds {hidden:g} to what comes later, which does not hide it for certain")
        return False
    return not hidden or value.no.dtype != torch.bool


def _is_diagonal(form: Linear) -> bool:
    return len(form.factors) >= 2 and form == Linear(0, (0,) * (len(form.factors) - 2) + (1, -1))


def _is_square(node: fx.Node, mask: fx.Node) -> bool:
    """Tell whether a mask has a row for each query and a column for each key of `node`."""
    sizes = [shape_of(each) or () for each in (mask, node.args[0], node.args[1])]
    return all(len(each) >= 2 for each in sizes) and same_shape(sizes[0][-2:], (sizes[1][-2], sizes[2][-2]))


def _causal_side(mask: fx.Node, rewriter: Rewriter) -> bool:
    """Tell whether `mask` is the conjunction of a causal one and another."""
    values = [value_of(each, rewriter) for each in mask.all_input_nodes] if calls(mask, *_AND) else []
    return any(isinstance(each, Choice) and _is_diagonal(each.form) for each in values)


class _Smaller:
    """Finds, or makes, smaller nodes that broadcast to the same values, of the same rank."""

    def __init__(self, rewriter: Rewriter, reader: fx.Node) -> None:
        self.rewriter = rewriter
        self.reader = reader
        self.known: dict[fx.Node, fx.Node] = {}

    def form(self, node: fx.Node, depth: int = 0) -> fx.Node:
        """Return a node that broadcasts to `node`; that itself where none is smaller."""
        if node not in self.known:
            self.known[node] = node if depth > _DEEPEST else self._find(node, depth)
        return self.known[node]

    def _find(self, node: fx.Node, depth: int) -> fx.Node:
        value = value_of(node, self.rewriter)
        if isinstance(value, Grid):
            return self._constant(node, value.tensor)
        if node.op != "call_function" or tensor_of(node) is None or is_random(node):
            return node
        given = arguments(node)
        if calls(node, "aten.expand"):
            return self._of_rank(node, self.form(given["self"], depth + 1))
        if calls(node, "aten.unsqueeze"):
            source = self.form(given["self"], depth + 1)
            same = source is given["self"]
            return node if same else self.rewriter.insert(node, "aten.unsqueeze", (source, given["dim"]))
        if calls(node, "aten.index.Tensor"):
            return self._gathered(node, given["self"], given["indices"])
        if is_elementwise(node.target):
            return self._elementwise(node, depth)
        return node

    def _constant(self, node: fx.Node, tensor: torch.Tensor) -> fx.Node:
        real = tensor_of(node)
        assert real is not None
        if node.op == "get_attr" and same_shape(real.shape, tensor.shape):
            return node
        if tensor.nbytes > _LARGEST_CONSTANT:
            self.rewriter.skip(self.reader, f"its mask would be a constant of {tensor.nbytes} bytes")
            return node
        # A copy of its own: a view would keep, and save, all that it is a view of.
        own = tensor.clone(memory_format=torch.contiguous_format).to(real.device)
        # Not its name: others may read the node itself.
        return self.rewriter.set_constant(node.graph, f"{name_of(node)}.values", own, [node])

    def _of_rank(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Return `source` with dimensions of size 1 before its own, as many as `node` has more."""
        for _ in range(len(shape_of(node) or ()) - len(shape_of(source) or ())):
            source = self.rewriter.insert(node, "aten.unsqueeze", (source, 0))
        return source

    def _elementwise(self, node: fx.Node, depth: int) -> fx.Node:
        smaller = {each: self.form(each, depth + 1) for each in node.all_input_nodes if tensor_of(each) is not None}
        kept = self._kept(node)
        if kept is not None:
            return self._of_rank(node, smaller[kept])
        if all(each is new for each, new in smaller.items()):
            return node
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda each: smaller.get(each, each))
        return self.rewriter.insert(node, node.target, args, kwargs)

    def _kept(self, node: fx.Node) -> fx.Node | None:
        """Return the operand that a conjunction, disjunction or sum is equal to, the other being true, false or 0."""
        tensor = tensor_of(node)
        if tensor is None:
            return None
        if calls(node, *_AND, *_OR) and tensor.dtype == torch.bool:
            neutral = calls(node, *_AND)
        elif calls(node, "aten.add.Tensor") and arguments(node)["alpha"] == 1 and tensor.is_floating_point():
            neutral = False
        else:
            return None
        given = arguments(node)
        for each, other in ((given["self"], given["other"]), (given["other"], given["self"])):
            value, kept = value_of(each, self.rewriter) if isinstance(each, fx.Node) else None, tensor_of(other)
            if kept is None or kept.dtype != tensor.dtype or not isinstance(value, Grid) or not value.uniform:
                continue
            if value.tensor.item() == neutral and isinstance(other, fx.Node):
                return other
        return None

    def _gathered(self, node: fx.Node, source: Any, indices: Any) -> fx.Node:
        """x[i, j], by numbers that rise along one dimension each: rows of x, or all of it."""
        sizes, rank = shape_of(source) or (), len(shape_of(node) or ())
        if len(indices) != len(sizes):
            return node
        picks: list[tuple[int, fx.Node | None]] = []
        for size, index in zip(sizes, indices, strict=True):
            form = linear_of(value_of(index, self.rewriter), rank) if isinstance(index, fx.Node) else None
            dims = [dim for dim, factor in enumerate(form.factors) if factor] if form is not None else []
            if form is None or len(dims) != 1 or form.constant < 0 or form.factors[dims[0]] < 0:
                return node
            length = (shape_of(index) or ())[dims[0] - rank]
            whole = form.constant == 0 and form.factors[dims[0]] == 1 and expression(length) == expression(size)
            picks.append((dims[0], None if whole else index))
        dims = [dim for dim, _ in picks]
        if dims != sorted(set(dims)):
            return node
        result = source
        for dim, (_, index) in enumerate(picks):
            if index is not None:
                result = self.rewriter.insert(node, "aten.index_select", (result, dim, self._line(node, index)))
        for dim in range(rank):
            if dim not in dims:
                result = self.rewriter.insert(node, "aten.unsqueeze", (result, dim))
        assert isinstance(result, fx.Node)
        return result

    def _line(self, node: fx.Node, index: fx.Node) -> fx.Node:
        """Return the one dimension along which `index` varies."""
        while calls(index, "aten.unsqueeze") and isinstance(index.args[0], fx.Node):
            index = index.args[0]
        if len(shape_of(index) or ()) == 1:
            return index
        return self.rewriter.insert(node, "aten.reshape", (index, [-1]))


RULES = (attention_mask,)
