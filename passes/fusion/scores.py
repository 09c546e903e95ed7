"""What a softmax over attention scores reads: steps (scales, masks, biases) around one product of queries and keys.

`trace` takes such a chain apart; `scale_of` and `mask_of` say what the attention operator has in its place.

A mask that hides with -inf becomes booleans. A row that it hides whole is NaN in the model and zeros in the operator,
which is the one thing that changes. A fill with a finite number (finfo.min, -1e9) becomes a number to add that is low
enough to absorb the score, so that such a row is uniform as it was: lower than -1e30 as it stands, and finfo.min for
one between -1e30 and -1e9, where it is assumed that no row of visible scores lies below -1e9.

Not handled: scores that are subtracted from, clamped, capped (tanh) or scaled by anything but a number; a chain of
more than eight steps; scores to which two products contribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import same_shape, same_type, shape_of, tensor_of
from burnish.passes.fusion.matching import addends, calls, factors, number_of

__all__ = ["Refusal", "Regroup", "Scale", "Scores", "keeps_matrices", "mask_of", "scale_of", "trace"]

_PRODUCTS = ("aten.matmul", "aten.bmm", "aten.baddbmm")
_DEPTH = 8
# A fill as low as this absorbs every score that is added to it, in every floating-point type.
_ABSORBS = -1e30
# A fill as low as this is below every score that a model can make, so that lower ones hide as much.
_HIDES = -1e9


class Refusal(Exception):  # noqa: N818  a signal, not an error
    """It is nearly attention; the message says what is in the way."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scores times a number."""

    node: fx.Node
    factor: float


@dataclass(frozen=True, slots=True)
class Add:
    """The scores plus `factor` times a mask or bias."""

    node: fx.Node
    term: fx.Node
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Fill:
    """`value` instead of the scores where `mask` is true (`hides`) or false."""

    node: fx.Node
    mask: Any
    hides: bool
    value: float


@dataclass(frozen=True, slots=True)
class Regroup:
    """The same scores with their leading dimensions split or joined."""

    node: fx.Node


Step = Scale | Add | Fill | Regroup


@dataclass(frozen=True, slots=True)
class Scores:
    """A chain of scores.

    Attributes:
        product: the product of the queries and the transposed keys.
        left: the queries [..., S, D].
        right: the transposed keys [..., D, T].
        steps: what is done to the product, the last first.
    """

    product: fx.Node
    left: fx.Node
    right: fx.Node
    steps: tuple[Step, ...]


def trace(node: Any, rewriter: Rewriter, depth: int = _DEPTH) -> Scores | None:
    """Return the chain that ends in `node`; None when no product of two matrices is at its start.

    Raises:
        Refusal: there are two.
    """
    if calls(node, *_PRODUCTS):
        return _product(node)
    found = None
    for step, inner in _peel(node, rewriter) if depth else ():
        scores = trace(inner, rewriter, depth - 1)
        if scores is None:
            continue
        if found is not None:
            raise Refusal("two products add up to its scores")
        found = Scores(scores.product, scores.left, scores.right, (step, *scores.steps))
    return found


def mask_of(
    anchor: fx.Node, steps: tuple[Step, ...], rewriter: Rewriter, shaped: Callable[[fx.Node, fx.Node], fx.Node]
) -> fx.Node | None:
    """Insert before `anchor` the mask that `steps` amount to: booleans where they only hide, numbers to add otherwise.

    Args:
        anchor: the node that will become the attention.
        steps: steps that `scale_of` let pass.
        shaped: called with a node of the chain and a mask or bias of it; returns the latter with the dimensions that
            it needs.
    """
    dtype = anchor.meta["val"].dtype
    scaled = [(step, factor) for step, factor in _with_factors(steps) if isinstance(step, Add | Fill)]
    if scaled and all(isinstance(step, Fill) and step.value == -math.inf for step, _ in scaled):
        return _seen(anchor, [step for step, _ in scaled if isinstance(step, Fill)], rewriter, shaped)
    mask: fx.Node | None = None
    for step, factor in reversed(scaled):
        if isinstance(step, Add):
            term = shaped(step.node, step.term)
            if factor * step.factor != 1.0:
                term = rewriter.insert(anchor, "aten.mul.Tensor", (term, factor * step.factor), like=term)
            mask = term if mask is None else rewriter.insert(anchor, "aten.add.Tensor", (mask, term))
            continue
        value = _low(factor * step.value)
        hidden = shaped(step.node, step.mask)
        if mask is None:
            either = (value, 0.0) if step.hides else (0.0, value)
            mask = rewriter.insert(anchor, "aten.where.Scalar", (hidden, *either))
            if dtype != torch.float32:
                mask = rewriter.insert(anchor, "aten.to.dtype", (mask, dtype))
        elif step.hides:
            mask = rewriter.insert(anchor, "aten.masked_fill.Scalar", (mask, hidden, value))
        else:
            mask = rewriter.insert(anchor, "aten.where.ScalarOther", (hidden, mask, value))
    return mask


def _low(value: float) -> float:
    """Return what is added for a fill of `value`: a number that float32 has, so that it is the same in every dtype.

    Rows that several fills hide whole would not stay uniform otherwise.
    """
    if not math.isfinite(value):
        return -math.inf
    lowest = torch.finfo(torch.float32).min
    return lowest if value > _ABSORBS else torch.tensor(max(value, lowest), dtype=torch.float32).item()


def scale_of(steps: tuple[Step, ...]) -> float:
    """Return the factor of the product under `steps`.

    Raises:
        Refusal: a step is none that a mask can say, or scales by a factor that is not positive.
    """
    if not all(0 < step.factor < math.inf for step in steps if isinstance(step, Scale)):
        raise Refusal("it scales its scores by a factor that is not positive")
    additive = False
    filled: set[float] = set()
    for step, factor in _with_factors(steps):
        if isinstance(step, Add):
            additive = True
            value, scores = tensor_of(step.term), tensor_of(step.node)
            if value is None or scores is None or value.dtype != scores.dtype:
                raise Refusal("its mask has another type than its scores")
        if isinstance(step, Fill):
            low = factor * step.value
            # One that is replaced must be the last to change the scores, and no other fill may tell hidden keys apart.
            if not low <= _HIDES or (low > _ABSORBS and additive):
                raise Refusal(f"it fills in {step.value:g}, which hides less than a mask does")
            if math.isfinite(low):
                filled.add(low)
    if len(filled) > 1 and max(filled) > _ABSORBS:
        raise Refusal(f"it fills in {max(filled):g} and {min(filled):g}, of which one hides more")
    return math.prod(step.factor for step in steps if isinstance(step, Scale))


def keeps_matrices(a: Any, b: Any) -> bool:
    """Tell whether one of two shapes has one leading dimension split in two, and the rest in common."""
    short, long = sorted((shape_of(a) or (), shape_of(b) or ()), key=len)
    return len(short) == 3 and len(long) == 4 and same_shape(short[1:], long[2:])


def _with_factors(steps: tuple[Step, ...]) -> Iterator[tuple[Step, float]]:
    """Yield every step with the factor that later steps scale it by."""
    factor = 1.0
    for step in steps:
        yield step, factor
        if isinstance(step, Scale):
            factor *= step.factor


def _seen(
    anchor: fx.Node, fills: list[Fill], rewriter: Rewriter, shaped: Callable[[fx.Node, fx.Node], fx.Node]
) -> fx.Node | None:
    """Return the booleans that are true where none of `fills` hides."""
    result: fx.Node | None = None
    for fill in reversed(fills):
        mask, hides = fill.mask, fill.hides
        if hides and calls(mask, "aten.logical_not", "aten.bitwise_not") and same_type(mask, mask.args[0]):
            mask, hides = mask.args[0], False
        mask = shaped(fill.node, mask)
        seen = rewriter.insert(anchor, "aten.logical_not", (mask,), like=mask) if hides else mask
        result = seen if result is None else rewriter.insert(anchor, "aten.logical_and", (result, seen))
    return result


def _product(node: fx.Node) -> Scores | None:
    found = arguments(node)
    if not calls(node, "aten.baddbmm"):
        left, right = node.args[:2]
        return Scores(node, left, right, ()) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None
    add = Add(node, found["self"], float(found["beta"]))
    steps = (*((add,) if add.factor else ()), Scale(node, float(found["alpha"])))
    return Scores(node, found["batch1"], found["batch2"], steps)


def _peel(node: Any, rewriter: Rewriter) -> Iterator[tuple[Step, Any]]:
    """Yield every reading of `node` as one step and the scores before it."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return
    if calls(node, "aten.reshape"):
        if keeps_matrices(node.args[0], node):
            yield Regroup(node), node.args[0]
        return
    for step, inner in _readings(node, rewriter):
        if same_type(node, inner):
            yield step, inner


def _readings(node: fx.Node, rewriter: Rewriter) -> Iterator[tuple[Step, Any]]:
    for a, b in addends(node):
        if isinstance(b, fx.Node):
            yield Add(node, b), a
    for a, b in factors(node):
        number = number_of(b, rewriter)
        if number is not None:
            yield Scale(node, number), a
    if calls(node, "aten.div.Tensor", "aten.div.Scalar"):
        number = number_of(node.args[1], rewriter)
        if number:
            yield Scale(node, 1.0 / number), node.args[0]
    if calls(node, "aten.masked_fill.Scalar", "aten.masked_fill.Tensor"):
        found = arguments(node)
        number = _filled(found["value"], rewriter)
        if number is not None:
            yield Fill(node, found["mask"], True, number), found["self"]
    if calls(node, "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf"):
        found = arguments(node)
        for name, other, hides in (("self", "other", False), ("other", "self", True)):
            number = _filled(found[other], rewriter)
            if number is not None:
                yield Fill(node, found["condition"], hides, number), found[name]


def _filled(value: Any, rewriter: Rewriter) -> float | None:
    """Return the one number that `value` is filled with."""
    if calls(value, "aten.full_like", "aten.full", "aten.scalar_tensor"):
        value = arguments(value)["s" if calls(value, "aten.scalar_tensor") else "fill_value"]
    return number_of(value, rewriter)
