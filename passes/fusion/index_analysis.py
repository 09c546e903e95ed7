"""Which nodes of a graph have values that depend on indices alone: an abstract interpretation, node by node.

Evaluated on demand, each node once per pass, and no further back than operators that it knows: constants and fills,
`arange`, elementwise operators, views, `index`, `diff`, `cumsum`, triangles, reductions and concatenations. Constants
are computed with the operator itself; see `index_values` for the values that there are. What this says of a node holds
where the Program runs without an error.

Not handled: sizes that a value depends on (`arange(S, 2 S)`), negative indices into dynamic sizes, buffers that the run
updates, random operators.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments, find_operator, is_mutating, is_random, operator_name
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.sizes import static_size
from burnish.passes.canonical.types import shape_of, tensor_of
from burnish.passes.fusion.index_calls import Call, axis
from burnish.passes.fusion.index_elementwise import elementwise, is_elementwise
from burnish.passes.fusion.index_values import (
    MOST_ELEMENTS,
    Choice,
    Grid,
    Linear,
    Value,
    choice,
    grid_of,
    linear_of,
    settled,
)
from burnish.passes.fusion.index_views import VIEWS

__all__ = ["value_of"]

# What has been found out so far, by pass: a rewrite changes no value.
_known: weakref.WeakKeyDictionary[Rewriter, dict[fx.Node, Value | None]] = weakref.WeakKeyDictionary()


def value_of(node: fx.Node, rewriter: Rewriter) -> Value | None:
    """Return the value of `node` as a function of its indices; None when it depends on more, or is not understood."""
    known = _known.setdefault(rewriter, {})
    stack = [node]
    while stack:
        each = stack[-1]
        rule = _rule_of(each)
        waiting = [] if rule is None else [one for one in each.all_input_nodes if one not in known]
        if each not in known and waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if each not in known:
            known[each] = _constant(each, rewriter) if rule is None else _evaluate(each, rule, known)
    return known[node]


_Rule = Callable[[Call], Value | None]


def _rule_of(node: fx.Node) -> _Rule | None:
    if node.op != "call_function" or tensor_of(node) is None or is_mutating(node.target) or is_random(node):
        return None
    return _RULES.get(node.target) or (elementwise if is_elementwise(node.target) else None)


def _constant(node: fx.Node, rewriter: Rewriter) -> Value | None:
    tensor = rewriter.constant(node)
    if tensor is None or tensor.layout is not torch.strided or tensor.is_quantized or tensor.numel() > MOST_ELEMENTS:
        return None
    return settled(Grid(tensor.detach().cpu()), tensor.shape)


def _evaluate(node: fx.Node, rule: _Rule, known: dict[fx.Node, Value | None]) -> Value | None:
    call = Call(node, arguments(node), known, shape_of(node) or ())
    try:
        with torch.no_grad():
            found = rule(call)
            found = None if found is None else settled(found, call.shape)
    except Exception:  # whatever a kernel raises, the model may never reach it
        return None
    dtype = torch.int64 if isinstance(found, Linear) else None
    if isinstance(found, Grid | Choice):
        dtype = (found.tensor if isinstance(found, Grid) else found.yes).dtype
    return found if dtype == call.dtype else None


def _arange(call: Call) -> Value | None:
    given = call.given
    start, step = given.get("start", 0), given.get("step", 1)
    if type(start) is int and type(step) is int and call.dtype == torch.int64:
        return Linear(start, (step,))
    size, end = static_size(call.shape[0]), given["end"]
    if size is None or size > MOST_ELEMENTS or any(isinstance(each, fx.Node) for each in (start, step, end)):
        return None
    return Grid(torch.arange(start, end, step, dtype=call.dtype))


def _fill(call: Call) -> Value | None:
    name = operator_name(call.target)
    number = call.given.get("fill_value", call.given.get("s", 0 if "zeros" in name else 1))
    if isinstance(number, fx.Node):
        return None
    return Grid(torch.full((1,) * len(call.shape), number, dtype=call.dtype))


def _diff(call: Call) -> Value | None:
    """Differences along a dimension of a linear form are its factor; so is the first where it continues what is before.

    One slice of size 1 put before is what a model compares positions with: x[0] - 1 for a first difference of 1.
    """
    value, given = call.value("self"), call.given
    if value is None or given["n"] != 1 or given["append"] is not None or not call.shape:
        return None
    rank = len(call.shape)
    dim = given["dim"] % rank
    form = linear_of(value, rank)
    if form is not None and call.dtype == torch.int64:
        # What it has at the index -1, in the slice before its first.
        before = form.plus(axis(dim, rank, 1, 1), -form.factors[dim])
        if given["prepend"] is None or _continues(call, dim, before):
            return Linear(form.factors[dim], (0,) * rank)
    return _along(call, dim)


def _continues(call: Call, dim: int, before: Linear) -> bool:
    """Tell whether what a `diff` puts before is one slice, and has the values `before`."""
    value, sizes = call.value("prepend"), call.sizes("prepend")
    return linear_of(value, len(sizes)) == before and static_size(sizes[dim]) == 1


def _cumsum(call: Call) -> Value | None:
    value, rank = call.value("self"), len(call.shape)
    if value is None or not rank:
        return None
    dim = call.given["dim"] % rank
    if isinstance(value, Grid) and value.uniform and call.dtype == torch.int64:
        number = value.tensor.item()
        if isinstance(number, int):
            return axis(dim, rank, int(number), int(number))
    return _along(call, dim)


def _along(call: Call, *dims: int) -> Value | None:
    """Run the operator on constants that are whole along `dims`."""
    tensors: dict[fx.Node, torch.Tensor] = {}
    for each in call.node.all_input_nodes:
        value, sizes = call.values.get(each), shape_of(each)
        if sizes is None:
            continue
        whole = None if value is None else grid_of(value, sizes, dims)
        if whole is None:
            return None
        tensors[each] = whole
    others = [dim for dim in range(len(call.shape)) if dim not in dims]
    shared = {dim: max(tensor.shape[dim] for tensor in tensors.values()) for dim in others} if len(tensors) > 1 else {}
    for each, tensor in tensors.items():
        tensors[each] = tensor.expand([shared.get(dim, size) for dim, size in enumerate(tensor.shape)])
    return Grid(call.run(tensors))


def _concatenation(call: Call) -> Value | None:
    return _along(call, call.given["dim"] % len(call.shape))


def _reduction(call: Call) -> Value | None:
    """The operators any and all, over dimensions whose sizes are numbers."""
    value, own = call.value("self"), call.sizes("self")
    dims = call.given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(len(own))
    whole = None if value is None else grid_of(value, own, [dim % len(own) for dim in dims])
    return None if whole is None else Grid(call.run({call.given["self"]: whole}))


def _triangle(call: Call) -> Value | None:
    """A triangle of a number is a choice."""
    value, rank, diagonal = call.value("self"), len(call.shape), call.number("diagonal")
    if value is None or diagonal is None:
        return None
    if not isinstance(value, Grid) or not value.uniform:
        return _along(call, rank - 2, rank - 1)
    row, column = axis(rank - 2, rank), axis(rank - 1, rank)
    below = row.plus(column, -1).plus(Linear(diagonal, (0,) * rank))
    other = torch.zeros_like(value.tensor)
    if call.target is find_operator("aten.tril"):
        return choice(below, False, value.tensor, other, call.shape)
    return choice(below.plus(Linear(1, (0,) * rank), -1), False, other, value.tensor, call.shape)


def _table(rules: dict[str, _Rule]) -> dict[Any, _Rule]:
    return {find_operator(f"aten.{name}"): rule for names, rule in rules.items() for name in names.split()}


_RULES: dict[Any, _Rule] = _table(
    {
        "arange arange.start arange.start_step": _arange,
        "full ones zeros new_full new_ones new_zeros full_like ones_like zeros_like scalar_tensor": _fill,
        **VIEWS,
        "diff": _diff,
        "cumsum": _cumsum,
        "cat": _concatenation,
        "any any.dim any.dims all all.dim all.dims": _reduction,
        "tril triu": _triangle,
    }
)
