"""Run a Program in eager PyTorch, node by node, freeing each value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from burnish.compiler import structure
from burnish.compiler.errors import InputError
from burnish.compiler.graphs import placeholders

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["bind", "run", "run_graph"]

Observer = Callable[[fx.Node, Any], None]


def bind(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a call by name.

    Raises:
        InputError: an argument is missing, left over, or has another structure, dtype or static shape than captured.
    """
    signature = program.signature
    container = signature.inputs
    assert isinstance(container, structure.Container)
    wanted_args, wanted_kwargs = container.children
    assert isinstance(wanted_args, structure.Container) and isinstance(wanted_kwargs, structure.Container)
    given = dict(kwargs)
    # A positional parameter may be given by its name, as in Python.
    positional = list(args)
    for name in signature.parameters[len(positional) :]:
        if name in given and name not in wanted_kwargs.keys:
            positional.append(given.pop(name))
    # And a keyword captured by name may be given by position.
    keyword_names = [key for key in wanted_kwargs.keys if key not in given]
    extra = positional[len(wanted_args.children) :]
    if extra and len(extra) <= len(keyword_names) and not wanted_args.children:
        given.update(zip(keyword_names, extra, strict=False))
        positional = []
    values = structure.flatten(signature.inputs, (tuple(positional), given))
    for graph in program.graphs.values():
        for node in placeholders(graph):
            if node.target in values:
                _check(str(node.target), values[str(node.target)], node.meta.get("val"))
    return values


def run(
    program: Program, inputs: Mapping[str, Any], observer: Observer | None = None
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run all stages on `inputs` by name.

    Args:
        observer: called with every operator node and its value.

    Returns:
        The outputs as the model's pytree, and the new values of the buffers that the model updates.
    """
    values = dict(inputs)
    state: dict[str, torch.Tensor] = {}
    mutable = program.mutable_constants()
    with torch.no_grad():
        for graph in program.graphs.values():
            arguments = [values[str(node.target)] for node in placeholders(graph)]
            values.update(run_graph(program, graph, arguments, state, mutable, observer))
    return structure.unflatten(program.signature.outputs, values), state


def run_graph(
    program: Program,
    graph: fx.Graph,
    arguments: list[Any],
    state: dict[str, torch.Tensor],
    mutable: frozenset[str],
    observer: Observer | None = None,
) -> Any:
    """Run one graph on positional arguments and return its outputs; updated buffers are put into `state`."""
    values: dict[fx.Node, Any] = {}
    last_use = _last_uses(graph)
    queue = iter(arguments)
    look_up = values.__getitem__
    for node in graph.nodes:
        if node.op == "call_function":
            target: Any = node.target
            args = fx.node.map_arg(node.args, look_up)
            kwargs = fx.node.map_arg(node.kwargs, look_up)
            result = target(*args, **kwargs)
            values[node] = result
            if observer is not None:
                observer(node, result)
            if mutable and isinstance(node.args[0] if node.args else None, fx.Node):
                _note_update(node, result, state, mutable)
        elif node.op == "placeholder":
            values[node] = next(queue)
        elif node.op == "get_attr":
            values[node] = _constant(program, str(node.target), state, mutable)
        else:
            return fx.node.map_arg(node.args[0], look_up)
        for dead in last_use.get(node, ()):
            del values[dead]
    raise AssertionError("a graph ends with its output node")


def _note_update(node: fx.Node, result: Any, state: dict[str, torch.Tensor], mutable: frozenset[str]) -> None:
    destination = node.args[0]
    assert isinstance(destination, fx.Node)
    if destination.op == "get_attr" and str(destination.target) in mutable and node.target is torch.ops.aten.copy_.default:
        state[str(destination.target)] = result


def _constant(program: Program, name: str, state: dict[str, torch.Tensor], mutable: frozenset[str]) -> Any:
    if name in program.branches:
        return fx.GraphModule(torch.nn.Module(), program.branches[name])
    # A copy, so that neither the caller's Program nor a returned alias sees the write.
    return state.get(name, program.constants[name]).clone() if name in mutable else program.constants[name]


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


def _check(name: str, value: Any, expected: Any) -> None:
    if not isinstance(expected, torch.Tensor):
        if isinstance(value, torch.Tensor):
            raise InputError(f"input {name!r} was a number at capture and is a tensor now: pass a number")
        return
    if not isinstance(value, torch.Tensor):
        raise InputError(f"input {name!r} must be a tensor, but is {type(value).__name__}")
    if value.dtype != expected.dtype:
        raise InputError(f"input {name!r} must have dtype {expected.dtype}, but has {value.dtype}: convert it")
    if value.dim() != expected.dim():
        raise InputError(f"input {name!r} must have {expected.dim()} dimensions, but has shape {list(value.shape)}")
    for index, (size, wanted) in enumerate(zip(value.shape, expected.shape, strict=True)):
        if isinstance(wanted, int) and size != wanted:
            raise InputError(
                f"input {name!r} has size {size} in dimension {index}, but was captured with {wanted} there:"
                " capture again with that dimension in dynamic_shapes"
            )
