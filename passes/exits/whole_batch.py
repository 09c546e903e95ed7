"""Whole batch: the rest of the network runs, for all samples, where one of them would stay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from burnish.compiler.conditional import COND
from burnish.compiler.cuts import ancestors
from burnish.compiler.graphs import name_of, output_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.exits.attach import Attached

__all__ = ["whole_batch"]


def whole_batch(
    rewriter: Rewriter,
    here: Attached,
    behind: Collection[fx.Node],
    results: tuple[fx.Node, fx.Node | int | None],
    number: int,
) -> tuple[fx.Node, fx.Node | None, set[fx.Node]]:
    """Let all samples leave by an exit where all of them may; arguments and results are those of `per_sample`."""
    graph, (logits, index) = here.leave.graph, results
    end = output_of(graph)

    def insert(name: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return rewriter.insert(end, target, args, kwargs, name=f"{here.name}.{name}", origins=[here.leave])

    # What a branch adds is made here too, typed; nothing reads it, and what has moved into branches, in the end.
    left, stayed = [insert("copy", "aten.clone", here.logits)], [logits]
    if index is not None:
        left.append(insert("index", "aten.full_like", here.leave, number, dtype=torch.int64))
        if not isinstance(index, fx.Node):
            index = insert("later", "aten.full_like", here.leave, index, dtype=torch.int64)
        stayed.append(index)
    inside = ancestors(stayed, set()) & set(behind) | {*stayed}
    bodies = [_with_sizes(left), _with_sizes([node for node in graph.nodes if node in inside])]
    operands = _operands(bodies)
    references = [
        rewriter.add_branch(graph, _branch(body, operands, outputs), f"{here.name}_{kind}")
        for body, outputs, kind in zip(bodies, (left, stayed), ("left", "stayed"), strict=True)
    ]
    everyone = insert("all", "aten.all", here.leave)
    choice = insert("cond", COND, everyone, *references, tuple(operands))
    merged = insert("logits", "getitem", choice, 0)
    exits = insert("exit", "getitem", choice, 1) if index is not None else None
    return merged, exits, {each for each in (everyone, choice, merged, exits) if each is not None}


def _operands(bodies: Iterable[Sequence[fx.Node]]) -> list[fx.Node]:
    """Return the values that bodies read from outside."""
    found: dict[fx.Node, None] = {}
    for body in bodies:
        inside = set(body)
        for node in body:
            read = [each for each in node.all_input_nodes if each not in inside]
            found.update(dict.fromkeys(each for each in read if each.meta.get("val") is not None))
    return list(found)


def _with_sizes(body: Sequence[fx.Node]) -> list[fx.Node]:
    """Return a body with the sizes that it reads: a branch takes tensors, and asks these for their sizes."""
    found: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        for each in node.all_input_nodes:
            if isinstance(each.meta.get("val"), torch.SymInt) and each.op == "call_function" and each not in found:
                add(each)
        found[node] = None

    for node in body:
        add(node)
    return list(found)


def _branch(body: Sequence[fx.Node], operands: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.Graph:
    graph = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    for operand in operands:
        name = name_of(operand).replace(".", "_")
        # A name in Python: constants of a Sequential are called 0.weight.
        done[operand] = graph.placeholder(f"_{name}" if name[0].isdigit() else name)
    for node in body:
        for each in node.all_input_nodes:
            if each not in done:
                # A branch of a branch.
                done[each] = graph.get_attr(str(each.target))
        done[node] = graph.node_copy(node, done.__getitem__)
    for old, new in done.items():
        new.meta = {**old.meta, "name": name_of(old)}
    graph.output(tuple(done[each] for each in outputs))
    return graph
