"""Index values of elementwise operators: sums and comparisons of linear forms, choices, and constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.operators import find_operator
from burnish.passes.canonical.types import shape_of
from burnish.passes.fusion.index_calls import Call
from burnish.passes.fusion.index_values import (
    MOST_ELEMENTS,
    Choice,
    Grid,
    Linear,
    Value,
    aligned,
    choice,
    grid_of,
    joint,
    linear_of,
)

__all__ = ["elementwise", "is_elementwise"]

# Elementwise operators that PyTorch does not tag as such.
_UNTAGGED = frozenset(
    find_operator(f"aten.{name}")
    for name in (
        *(f"{word}.{kind}" for word in ("__and__", "__or__", "__xor__") for kind in ("Tensor", "Scalar")),
        *(f"{word}.{kind}" for word in ("less", "less_equal", "greater", "greater_equal", "not_equal")
          for kind in ("Tensor", "Scalar")),
        *(f"where.{kind}" for kind in ("Scalar", "ScalarSelf", "ScalarOther")),
        "masked_fill.Tensor",
        "to.dtype",
        "contiguous",
        "alias",
        "detach",
    )
)  # fmt: skip
_COPIES = frozenset(find_operator(f"aten.{name}") for name in ("to.dtype", "clone", "contiguous", "alias", "detach"))


def is_elementwise(target: Any) -> bool:
    """Tell whether `target` computes each element from the elements at its place, and from nothing else."""
    return isinstance(target, OpOverload) and (torch.Tag.pointwise in target.tags or target in _UNTAGGED)


def elementwise(call: Call) -> Value | None:
    """Return the value of an elementwise operator; None when it is none that depends on indices alone."""
    operands: dict[fx.Node, Value] = {}
    for each in call.node.all_input_nodes:
        value = call.values.get(each)
        own = shape_of(each)
        if value is None or own is None:
            return None
        operands[each] = value
    if all(aligned(value, shape_of(each) or (), call.shape) for each, value in operands.items()):
        found = _linear(call) or _comparison(call) or _branches(call, operands)
        if found is not None:
            return found
    grids: dict[fx.Node, torch.Tensor] = {}
    for each, value in operands.items():
        grid = grid_of(value, shape_of(each) or ())
        if grid is None:
            return None
        grids[each] = grid
    return Grid(call.run(grids)) if torch.Size(joint([*grids.values()])).numel() <= MOST_ELEMENTS else None


_ARITHMETIC = {
    find_operator(f"aten.{name}"): sign
    for name, sign in {
        "add.Tensor": 1, "add.Scalar": 1, "sub.Tensor": -1, "sub.Scalar": -1, "rsub.Scalar": 0, "rsub.Tensor": 0,
    }.items()
}  # fmt: skip
_PRODUCTS = {find_operator("aten.mul.Tensor"), find_operator("aten.mul.Scalar")}


def _form(call: Call, name: str) -> Linear | None:
    found = call.given[name]
    return linear_of(call.values.get(found) if isinstance(found, fx.Node) else found, len(call.shape))


def _linear(call: Call) -> Linear | None:
    """Sums of linear forms, multiples of them by numbers, and copies."""
    if call.dtype != torch.int64:
        return None
    target = call.target
    if target in _COPIES:
        return _form(call, "self")
    if target is find_operator("aten.neg"):
        only = _form(call, "self")
        return None if only is None else Linear(0, (0,) * len(call.shape)).plus(only, -1)
    if target not in _ARITHMETIC and target not in _PRODUCTS:
        return None
    left, right = _form(call, "self"), _form(call, "other")
    if left is None or right is None:
        return None
    if target in _PRODUCTS:
        left, right = (right, left) if any(right.factors) else (left, right)
        return None if any(right.factors) else Linear(0, (0,) * len(call.shape)).plus(left, right.constant)
    alpha, sign = call.given["alpha"], _ARITHMETIC[target]
    if type(alpha) is not int:
        return None
    return left.plus(right, sign * alpha) if sign else right.plus(left, -alpha)


# left - right >= constant, or its opposite.
_COMPARISONS = {
    find_operator(f"aten.{name}.{kind}"): (offset, opposite, equal)
    for kind in ("Tensor", "Scalar")
    for names, offset, opposite, equal in (
        (("ge", "greater_equal"), 0, False, False),
        (("gt", "greater"), -1, False, False),
        (("lt", "less"), 0, True, False),
        (("le", "less_equal"), -1, True, False),
        (("eq",), 0, False, True),
        (("ne", "not_equal"), 0, True, True),
    )
    for name in names
}


def _comparison(call: Call) -> Value | None:
    """Comparisons of linear forms."""
    if call.target not in _COMPARISONS:
        return None
    left, right = _form(call, "self"), _form(call, "other")
    if left is None or right is None:
        return None
    offset, opposite, equal = _COMPARISONS[call.target]
    difference = left.plus(right, -1)
    yes = torch.full((1,) * len(call.shape), not opposite)
    shifted = Linear(difference.constant + offset, difference.factors)
    return choice(shifted, equal, yes, ~yes, call.shape)


def _branches(call: Call, operands: dict[fx.Node, Value]) -> Value | None:
    """What is computed from one choice and numbers is a choice, between what is computed from its two values."""
    rank, test = len(call.shape), None
    yes: dict[fx.Node, torch.Tensor] = {}
    no: dict[fx.Node, torch.Tensor] = {}
    for each, value in operands.items():
        if isinstance(value, Choice):
            own = (linear_of(value.form, rank), value.equal)
            if test not in (None, own):
                return None
            test = own
            yes[each], no[each] = value.yes, value.no
        elif isinstance(value, Grid) and value.uniform:
            yes[each] = no[each] = value.tensor
        else:
            return None
    if test is None or test[0] is None:
        return None
    return choice(test[0], test[1], call.run(yes), call.run(no), call.shape)
