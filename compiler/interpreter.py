"""Run a Program in eager PyTorch, node by node, freeing each value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from burnish.compiler import structure
from burnish.compiler.conditional import branch_module
from burnish.compiler.graphs import placeholders

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["run", "run_graph"]

_aten = torch.ops.aten
Observer = Callable[[fx.Node, Any], None]


def run(
    program: Program, inputs: Mapping[str, Any], observer: Observer | None = None, *, dense: bool = False
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run all stages on `inputs` by name.

    Args:
        observer: called with every operator node and its value.
        dense: give every value contiguous strides. The IR has no strides, but which kernel PyTorch picks, and so the
            last bit, depends on them: two Programs that mean the same are bit-equal only so. What is computed from
            constants alone keeps its strides: a transposed weight is a view inside `linear` too, folding keeps it.

    Returns:
        The outputs as the model's pytree, and the new values of the buffers that the model updates.
    """
    values = dict(inputs)
    state: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for graph in program.graphs.values():
            arguments = [values[str(node.target)] for node in placeholders(graph)]
            values.update(run_graph(program, graph, arguments, state, observer, dense))
    return structure.unflatten(program.signature.outputs, values), state


def run_graph(
    program: Program,
    graph: fx.Graph,
    arguments: list[Any],
    state: dict[str, torch.Tensor],
    observer: Observer | None = None,
    dense: bool = False,
) -> Any:
    """Run one graph on positional arguments and return its outputs; updated buffers are put into `state`."""
    values: dict[fx.Node, Any] = {}
    last_use = _last_uses(graph)
    constants = set(graph.find_nodes(op="get_attr")) if dense else set()
    queue = iter(arguments)
    look_up = values.__getitem__
    for node in graph.nodes:
        if node.op == "call_function":
            # A buffer's new value is a tensor of its own: who reads the old one, another update perhaps, still can.
            target: Any = _aten.copy.default if node.target is _aten.copy_.default else node.target
            args = fx.node.map_arg(node.args, look_up)
            kwargs = fx.node.map_arg(node.kwargs, look_up)
            result = target(*args, **kwargs)
            if dense:
                if all(each in constants for each in node.all_input_nodes):
                    constants.add(node)
                else:
                    result = _dense(result)
            values[node] = result
            if observer is not None:
                observer(node, result)
            if node.target is _aten.copy_.default:
                state[str(node.args[0].target)] = result
        elif node.op == "placeholder":
            values[node] = next(queue)
        elif node.op == "get_attr":
            values[node] = _constant(program, str(node.target), state)
        else:
            return fx.node.map_arg(node.args[0], look_up)
        for dead in last_use.get(node, ()):
            del values[dead]
    raise AssertionError("a graph ends with its output node")


def _dense(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.contiguous()
    return type(value)(map(_dense, value)) if type(value) in (tuple, list) else value


def _constant(program: Program, name: str, state: dict[str, torch.Tensor]) -> Any:
    if name in program.branches:
        return branch_module(program.branches, name)
    return state.get(name, program.constants[name])


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    seen: set[fx.Node] = set()
    uses: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for each in node.all_input_nodes:
            if each not in seen:
                seen.add(each)
                if node.op != "output":
                    uses.setdefault(node, []).append(each)
        if node not in seen and node.op == "call_function":
            seen.add(node)
            uses.setdefault(node, []).append(node)
    return uses
