"""Per sample: the rest of the network runs on those that stay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sympy
import torch
from torch import fx

from burnish.compiler.graphs import name_of, output_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.exits.attach import Attached
from burnish.passes.exits.remainder import Remainder

__all__ = ["per_sample"]


def per_sample(
    rewriter: Rewriter,
    here: Attached,
    behind: Collection[fx.Node],
    results: tuple[fx.Node, fx.Node | int | None],
    number: int,
    batch: sympy.Symbol,
) -> tuple[fx.Node, fx.Node | None, set[fx.Node]]:
    """Let samples leave by an exit.

    Args:
        rewriter: makes the changes.
        here: the exit.
        behind: the operators that are to work on those that stay.
        results: logits of what is behind, and the exits by which these samples leave: for all the same number, or None
            where nobody asks.
        number: of this exit.
        batch: the number of all samples.

    Returns:
        Logits and exits of all samples, and the new operators.
    """
    graph, anchor = here.leave.graph, here.leave.next
    made: list[fx.Node] = []

    def insert(before: fx.Node, name: str, operator: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = rewriter.insert(before, operator, args, kwargs, name=f"{here.name}.{name}", origins=[here.leave])
        made.append(node)
        return node

    unsure = insert(anchor, "unsure", "aten.logical_not", here.leave)
    stay = insert(anchor, "stay", "aten.select.int", insert(anchor, "places", "aten.nonzero", unsure), 1, 0)

    def fewer(value: fx.Node) -> fx.Node:
        short = name_of(value).removeprefix(f"{here.name}.")
        return insert(anchor, short, "aten.index_select", value, 0, stay)

    remainder = Remainder(rewriter, anchor, batch, fewer)
    remainder.move(behind, here.cut.value)
    end = output_of(graph)
    logits, index = results
    merged = insert(end, "logits", "aten.index_copy", here.logits, 0, stay, logits)
    if index is not None:
        mine = insert(end, "index", "aten.full_like", here.leave, number, dtype=torch.int64)
        theirs = index if isinstance(index, fx.Node) else insert(end, "later", "aten.full_like", stay, index)
        index = insert(end, "exit", "aten.index_copy", mine, 0, stay, theirs)
    return merged, index if isinstance(index, fx.Node) else None, {*made, *remainder.made}
