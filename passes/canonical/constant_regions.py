"""What can be computed before any input is known: which nodes, and what storing a result would free.

A node is fixed when it is an operator all of whose node arguments are fixed nodes or constants that no run updates.
A fixed node falls when it is erased because the last of its users has been.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from burnish.compiler.operators import is_mutating, is_random

__all__ = ["FixedNodes", "byte_size"]

# Their results are whatever memory holds.
_UNSET = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize"}
)
_LARGEST = 1 << 30


class FixedNodes:
    """The fixed nodes of one graph.

    Args:
        graph: the graph.
        constants: names of the program's constants.
        mutable: names of those that a run updates.

    Attributes:
        nodes: fixed operator nodes, in graph order.
        refused: nodes that only lack a property of their operator or constants to be fixed, and which.
    """

    def __init__(self, graph: fx.Graph, constants: Iterable[str], mutable: frozenset[str]) -> None:
        known = frozenset(constants)
        self.nodes: dict[fx.Node, None] = {}
        self.refused: dict[fx.Node, str] = {}
        for node in graph.nodes:
            if node.op != "call_function" or is_mutating(node.target):
                continue
            inputs = node.all_input_nodes
            if not all(each in self.nodes or (each.op == "get_attr" and each.target in known) for each in inputs):
                continue
            updated = [str(each.target) for each in inputs if each.op == "get_attr" and each.target in mutable]
            reason = f"a run updates its input @{updated[0]}" if updated else _reason(node)
            if reason is None:
                self.nodes[node] = None
            elif reason:
                self.refused[node] = reason

    def falling(self, node: fx.Node, gone: Counter[fx.Node]) -> list[fx.Node]:
        """Return what goes when `node` does: itself, then operators and constants, users before what they use.

        Args:
            node: a fixed node.
            gone: how many users of each node count as erased already.
        """
        falling, lost = [node], Counter[fx.Node]()
        for each in falling:
            for value in each.all_input_nodes:
                lost[value] += 1
                if lost[value] + gone[value] == len(value.users):
                    falling.append(value)
        return falling


def byte_size(value: Any) -> int | None:
    """Return the bytes that a tensor of this type takes; None when it is no tensor, or its size is symbolic."""
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        return None
    return value.numel() * value.element_size()


def _reason(node: fx.Node) -> str | None:
    """Say why `node` cannot be computed now, "" when that is no news; None when it can."""
    target: Any = node.target
    if not isinstance(target, OpOverload):
        return None if target is operator.getitem else ""
    if is_random(node):
        return "it draws random numbers"
    name = target._schema.name.partition("::")[2]
    if name in _UNSET:
        return "it does not set its values"
    if name.startswith("dequantize"):
        return "its constant is kept quantized on purpose"
    if not target._schema.returns:
        return ""
    if torch.Tag.data_dependent_output in target.tags:
        return "it reads a number out of a tensor"
    if torch.Tag.dynamic_output_shape in target.tags and free_unbacked_symbols(node.meta["val"]):
        return "the size of its result depends on its values"
    for each in torch.utils._pytree.tree_leaves(node.meta["val"]):
        size = byte_size(each)
        if size is None or each.layout is not torch.strided:
            return ""
        if size > _LARGEST:
            return f"it takes {size} bytes, too many to compute beforehand"
    return None
