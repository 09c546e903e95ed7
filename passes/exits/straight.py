"""Straight: a Program with exits by which nobody leaves, that gives what every head says of every sample.

It is what heads are trained on, and thresholds chosen with. It shares the constants of the Program that it is made of,
by name. Exits are found by their form, whatever passes have made of the rest:

    index_copy(logits, 0, select(nonzero(logical_not(gt(score, @threshold))), 1, 0), rest)
    cond(all(gt(score, @threshold)), copy of logits, rest)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.conditional import conditional
from burnish.compiler.graphs import calls, name_of, output_of
from burnish.compiler.operators import operator_name
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.structure import Container, Leaf
from burnish.passes.canonical.dce import erase_dead

__all__ = ["Head", "Straight", "straightened"]

_COMPARISONS = ("aten.gt.Tensor", "aten.ge.Tensor")
_PER_SAMPLE = ("aten.index_copy", "aten.select.int", "aten.nonzero", "aten.logical_not")
_WHOLE_BATCH = ("getitem", "higher_order.cond", "aten.all")


@dataclass(frozen=True, slots=True)
class Head:
    """An exit.

    Attributes:
        logits: name of the output with its logits, [samples, classes].
        score: name of the output with its scores, [samples].
        threshold: name of the constant that scores are compared with.
        counts: scores are counts, as with patience.
    """

    logits: str
    score: str
    threshold: str
    counts: bool


@dataclass(frozen=True, slots=True)
class Straight:
    """A Program that gives what all heads say.

    Attributes:
        program: its first output is the model's own; then come logits and scores of every exit.
        output: name of the first.
        heads: the exits, in order.
    """

    program: Program
    output: str
    heads: tuple[Head, ...]


def straightened(program: Program) -> Straight | None:
    """Return the Program by whose exits nobody leaves; None where there are none."""
    name = _logits(program)
    if name is None:
        return None
    program = program.copy()
    rewriter = Rewriter(program, "straight")
    (graph,) = program.graphs.values()
    named: dict[str, fx.Node] = {}
    heads: list[Head] = []
    with rewriter.rewrite("straight"):
        rest = _outputs(graph)[name]
        while (leave := _leave(rest)) is not None:
            score, threshold = leave.all_input_nodes
            head = Head(
                logits=f"logits{len(heads) + 1}",
                score=f"score{len(heads) + 1}",
                threshold=str(threshold.target),
                counts=not score.meta["val"].is_floating_point(),
            )
            heads.append(head)
            named[head.score] = score
            named[head.logits], rest = _opened(rewriter, rest)
        named = {name: rest, **named}
        rewriter.set_outputs(graph, named)
        rewriter.set_output_structure(Container("tuple", (), tuple(Leaf(each) for each in named)))
        erase_dead(program, rewriter)
        for node in calls(graph):
            rewriter.set_arguments(node, node.args, dict(node.kwargs))
    return Straight(program, name, tuple(heads))


def _outputs(graph: fx.Graph) -> dict[str, fx.Node]:
    return dict(output_of(graph).args[0])  # type: ignore[arg-type]


def _logits(program: Program) -> str | None:
    """Return the name of the output that samples leave with."""
    if len(program.graphs) > 1:
        return None
    (graph,) = program.graphs.values()
    for name, node in _outputs(graph).items():
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point() and _leave(node) is not None:
            return name
    return None


def _leave(result: fx.Node) -> fx.Node | None:
    """Return what tells who leaves with `result`; None where it is no end of an exit."""
    node: Any = result
    for name in _PER_SAMPLE if _is(node, "aten.index_copy") else _WHOLE_BATCH:
        if not _is(node, name):
            return None
        node = node.args[2 if name == "aten.index_copy" else 0]
    is_comparison = any(_is(node, name) for name in _COMPARISONS)
    return node if is_comparison and [each.op for each in node.all_input_nodes][1:] == ["get_attr"] else None


def _is(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and operator_name(node.target) == name


def _opened(rewriter: Rewriter, result: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Let everybody stay; return the logits of those that left, and what those that stayed had."""
    if not _is(result, "aten.index_copy"):
        return _inlined(rewriter, result)
    logits, _, stay, rest = result.all_input_nodes[0], *result.args[1:]
    assert isinstance(stay, fx.Node) and isinstance(rest, fx.Node)
    for user in list(stay.users):
        if _is(user, "aten.index_select"):
            source = user.all_input_nodes[0]
            # What is read in place of the rows may be the rest itself.
            rest = source if user is rest else rest
            rewriter.replace(user, source)
    return logits, rest


def _inlined(rewriter: Rewriter, result: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Put the branch for those that stay in place of its `cond`."""
    program, node, place = rewriter.program, result.all_input_nodes[0], result.args[1]
    assert isinstance(place, int)
    choice = conditional(node)
    assert choice is not None
    left, stayed = (program.branches[name] for name in choice.branches)
    made: dict[fx.Node, Any] = dict(choice.inputs(program))
    for each in stayed.nodes:
        if each.op == "get_attr":
            made[each] = rewriter.branch_node(node.graph, str(each.target))
        elif each.op == "call_function":
            args, kwargs = fx.node.map_arg(each.args, made.__getitem__), fx.node.map_arg(each.kwargs, made.__getitem__)
            target: Any = each.target
            made[each] = rewriter.insert(node, target, args, kwargs, name=name_of(each), origins=[each], like=each)
    logits = _results(left)[place]
    while logits.op == "call_function":
        logits = logits.all_input_nodes[0]
    return made[logits], made[_results(stayed)[place]]


def _results(branch: fx.Graph) -> tuple[fx.Node, ...]:
    return tuple(output_of(branch).args[0])  # type: ignore[arg-type]
