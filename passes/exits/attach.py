"""Attach: a head behind a cut point, and what tells which samples may leave there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.cuts import Cut
from burnish.compiler.errors import OptionError
from burnish.compiler.rewriter import Rewriter
from burnish.passes.exits.rules import Rule, certainty

__all__ = ["Attached", "attach"]


@dataclass(frozen=True, slots=True)
class Attached:
    """A head that nobody leaves by yet.

    Attributes:
        name: prefix of its names.
        cut: where it stands.
        logits: what it gives, [samples, classes].
        prediction: classes, with patience.
        score: how sure it is, [samples].
        leave: who may leave, b1[samples]; the last node of all.
        nodes: all that is new.
    """

    name: str
    cut: Cut
    logits: fx.Node
    prediction: fx.Node | None
    score: fx.Node
    leave: fx.Node
    nodes: frozenset[fx.Node]


def attach(
    rewriter: Rewriter,
    cut: Cut,
    name: str,
    head: Callable[[fx.Node], fx.Node],
    result: fx.Node,
    rule: Rule,
    threshold: float,
    before: Attached | None,
) -> Attached:
    """Insert a head right behind a cut point.

    Args:
        rewriter: inserts.
        cut: where.
        name: prefix of names.
        head: inserts the head before a node and returns its logits.
        result: the logits of the model.
        rule: how sure it is.
        threshold: above it a sample leaves; with patience, when it is reached.
        before: the exit before.

    Raises:
        OptionError: the head's logits are not like the model's.
    """
    anchor, graph = cut.value.next, cut.value.graph
    known = set(graph.nodes)
    logits = head(anchor)
    if logits.meta["val"].dtype != result.meta["val"].dtype and logits.meta["val"].is_floating_point():
        # Behind layers in half precision.
        cast = (logits, result.meta["val"].dtype)
        logits = rewriter.insert(anchor, "aten.to.dtype", cast, name=f"{name}.to", origins=[logits])
    given, wanted = logits.meta["val"], result.meta["val"]
    if tuple(given.shape) != tuple(wanted.shape) or given.dtype != wanted.dtype:
        raise OptionError(
            f"pass 'insert-exits': the head of {name} gives {given.dtype}{list(given.shape)}, but the model"
            f" {wanted.dtype}{list(wanted.shape)}"
        )

    def apply(operator: str, *args: Any) -> fx.Node:
        short = operator.removeprefix("aten.").partition(".")[0]
        return rewriter.insert(anchor, operator, args, name=f"{name}.{short}", origins=[logits])

    prediction = None
    if rule == "patience":
        prediction = apply("aten.argmax", logits, -1)
        if before is None or before.prediction is None:
            score = apply("aten.zeros_like", prediction)
        else:
            same = apply("aten.eq.Tensor", prediction, before.prediction)
            score = apply("aten.mul.Tensor", apply("aten.add.Tensor", before.score, 1), same)
        limit, compare = torch.tensor(int(threshold)), "aten.ge.Tensor"
    else:
        wide = logits if given.dtype == torch.float32 else apply("aten.to.dtype", logits, torch.float32)
        score = certainty(rule, wide, int(wanted.shape[1]), apply)
        limit, compare = torch.tensor(threshold), "aten.gt.Tensor"
    constant = rewriter.set_constant(graph, f"{name}.threshold", limit, [logits])
    leave = rewriter.insert(anchor, compare, (score, constant), name=f"{name}.leave", origins=[logits])
    made = frozenset(node for node in graph.nodes if node not in known and node.op == "call_function")
    return Attached(name, cut, logits, prediction, score, leave, made)
