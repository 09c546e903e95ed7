"""What rules ask of the graph: operators, numbers, operands in any order, and how to clean up after a match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.operators import arguments, find_operator, is_mutating, is_random
from burnish.compiler.rewriter import Rewriter

__all__ = ["addends", "calls", "erase_unused", "factors", "number_of", "only_user"]

_ADD = {find_operator("aten.add.Tensor"), find_operator("aten.add.Scalar")}
_MUL = {find_operator("aten.mul.Tensor"), find_operator("aten.mul.Scalar")}


def calls(value: Any, *operators: str) -> bool:
    """Tell whether `value` is a node that calls one of `operators`."""
    if not isinstance(value, fx.Node):
        return False
    target = value.target
    for name in operators:  # noqa: SIM110  rules ask this of every node, many times over
        if target is find_operator(name):
            return True
    return False


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the one node that reads `node`; None when there are several, or none, or when it is the output."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return user if user.op == "call_function" else None


def number_of(value: Any, rewriter: Rewriter) -> float | None:
    """Return `value` as a number: a Python number, or a floating-point constant of one element; None for all else."""
    if type(value) in (int, float):
        return float(value)
    tensor = rewriter.constant(value)
    if tensor is None or tensor.numel() != 1 or not tensor.is_floating_point():
        return None
    return float(tensor.item())


def addends(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the two operands of an addition, in both orders; nothing when `node` is none or scales its second one."""
    if isinstance(node, fx.Node) and node.target in _ADD:
        found = arguments(node)
        if found["alpha"] == 1:
            yield found["self"], found["other"]
            yield found["other"], found["self"]


def factors(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the two operands of a multiplication, in both orders; nothing when `node` is none."""
    if isinstance(node, fx.Node) and node.target in _MUL:
        found = arguments(node)
        yield found["self"], found["other"]
        yield found["other"], found["self"]


def erase_unused(rewriter: Rewriter, nodes: Iterable[Any]) -> None:
    """Erase those of `nodes` that nothing reads any more, and what only they read.

    A rule calls this after its match: a dead reader would keep later rules from seeing a single user.
    """
    stack = [node for node in nodes if isinstance(node, fx.Node)]
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in seen or node.users or node.op not in ("call_function", "get_attr") or _must_stay(node):
            continue
        seen.add(node)
        inputs = node.all_input_nodes
        rewriter.erase(node)
        stack.extend(each for each in inputs if each.op == "call_function")


def _must_stay(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return False
    target = node.target
    has_result = not isinstance(target, OpOverload) or bool(target._schema.returns)
    return (
        is_mutating(target)
        or is_random(node)
        or not has_result
        or not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list, int, float, torch.SymInt, torch.SymFloat))
    )
