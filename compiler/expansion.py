"""Replace one operator node by the operators that it is made of: trace it alone, on its types, and splice the trace in.

Only the nodes concerned are traced, so that all others keep their names and provenance, and the time goes with what
must change (some 5 ms a trace).

Cases not handled, where `expansion` returns None: an input without a type, and a decomposition that cannot be traced
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from burnish.compiler.fused import decomposition_of
from burnish.compiler.stand_ins import settled, unsettled
from burnish.compiler.typing_rules import on_types

__all__ = ["expansion", "splice"]


def expansion(
    node: fx.Node,
    fake_mode: FakeTensorMode,
    *,
    table: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.Graph | None:
    """Return a graph that computes what `node` does, with a placeholder for each of its input nodes, in their order.

    Args:
        node: an operator node; it and its inputs have types.
        fake_mode: what the types belong to.
        table: decompositions for the operators inside, composite ones coming apart too. None for a fused operator,
            whose own decomposition alone is taken: the operators that it calls stay whole (`aten.linear`).
    """
    inputs = node.all_input_nodes
    values = [each.meta.get("val") for each in inputs]
    if any(value is None for value in values):
        return None
    function: Any = node.target if table is not None else decomposition_of(node.target)

    def run(*given: Any) -> Any:
        look_up = dict(zip(inputs, given, strict=True)).__getitem__
        return function(*fx.node.map_arg(node.args, look_up), **fx.node.map_arg(node.kwargs, look_up))

    def trace(values: list[Any]) -> fx.Graph | None:
        try:
            with on_types(fake_mode):
                values = _each_its_own(values)
                if table is None:
                    traced = make_fx(run, pre_dispatch=True)(*values)
                else:
                    # A composite operator comes apart in the first trace only, and may write in place there.
                    pure = torch.func.functionalize(make_fx(run)(*values), remove="mutations")
                    traced = make_fx(pure, decomposition_table=dict(table))(*values)
        except Exception:
            # Whatever goes wrong in a lone trace: the caller has another way, or a reason of its own to give.
            return None
        traced.graph.eliminate_dead_code()
        graph: fx.Graph = traced.graph
        return graph

    found = trace(values)
    if found is None and fake_mode.shape_env is not None:
        # Some want to know something of a size that only the data decide: one of the ordinary kind stands in for it.
        with on_types(fake_mode):
            stand_ins = settled(values, fake_mode.shape_env)
        found = trace(stand_ins) if stand_ins is not values else None
        for node in found.nodes if found is not None else ():
            if "val" in node.meta:
                with on_types(fake_mode):
                    node.meta["val"] = unsettled(node.meta["val"], fake_mode.shape_env)
    return found


def splice(node: fx.Node, body: fx.Graph) -> tuple[list[fx.Node], list[tuple[fx.Node, fx.Node]]]:
    """Put the operators of `body`, an expansion of `node` or of one like it, in its place.

    Returns:
        The new nodes, with the meta of `node` but for their types, and pairs of an old node, erased, and the one that
        replaces it: of `node`, or of each `getitem` of its results.
    """
    done: dict[fx.Node, Any] = dict(zip(body.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    graph, made = node.graph, []
    with graph.inserting_before(node):
        for each in body.nodes:
            if each.op == "call_function":
                done[each] = new = graph.node_copy(each, done.__getitem__)
                new.meta = {**node.meta, "val": each.meta.get("val")}
                made.append(new)
    result: Any = fx.node.map_arg(body.output_node().args[0], done.__getitem__)
    if isinstance(result, fx.Node):
        replaced = [(node, result)]
    else:
        replaced = [(user, result[user.args[1]]) for user in list(node.users)]
    for old, new in replaced:
        old.replace_all_uses_with(new)
        if old is not node:
            graph.erase_node(old)
    graph.erase_node(node)
    return made, replaced


def _each_its_own(values: list[Any]) -> list[Any]:
    """Copy a tensor that stands for several inputs: a trace tells inputs apart by the identity of their values."""
    seen: set[int] = set()
    own = []
    for value in values:
        repeated = isinstance(value, torch.Tensor) and id(value) in seen
        own.append(value.clone() if repeated else value)
        seen.add(id(value))
    return own
