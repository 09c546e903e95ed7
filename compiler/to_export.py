"""Turn a Program into a torch.export.ExportedProgram, node by node, without tracing again.

The result is called with the Program's inputs by position, in the order of `signature.input_names`, and returns its
outputs as a tuple, in the order of `signature.output_names`: the pytrees of the model are the Binding's business.
Constants become lifted buffers, shared with the Program. Node names are identifiers made of the display names;
`nn_module_stack` and `stack_trace` are made of the provenance, and `node.meta["custom"]`, which PyTorch carries
through decompositions, holds the display name ("burnish_name") and the module paths ("burnish_module").

Cases not handled: a Program of several stages, and branches that refer to constants (both raise BackendError).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ArgumentSpec,
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)

from burnish.compiler.errors import BackendError
from burnish.compiler.graphs import name_of, output_of, placeholders, updates
from burnish.compiler.program import Program
from burnish.compiler.provenance import module_of, provenance_of

__all__ = ["state_of", "to_exported_program"]

_ILLEGAL = re.compile(r"\W+")


def to_exported_program(program: Program, *, state_as_inputs: bool = False) -> ExportedProgram:
    """Build the ExportedProgram of a Program with one graph.

    Args:
        state_as_inputs: the buffers that the Program updates become inputs and outputs, after its own and in the order
            of `state_of(program)`; by default they are mutated buffers.

    Raises:
        BackendError: the Program has several graphs, or a branch refers to a constant.
    """
    if len(program.graphs) != 1:
        raise BackendError(f"the program has {len(program.graphs)} stages ({', '.join(program.graphs)}): lower each")
    return _Builder(program, state_as_inputs).build()


def state_of(program: Program) -> list[str]:
    """Return the names of the buffers that the Program updates, in the order of the updates."""
    (graph,) = program.graphs.values()
    return list(dict.fromkeys(str(node.args[0].target) for node in updates(graph)))  # type: ignore[union-attr]


class _Builder:
    def __init__(self, program: Program, state_as_inputs: bool) -> None:
        self.program = program
        (self.source,) = program.graphs.values()
        self.state = state_of(program)
        self.state_as_inputs = state_as_inputs
        self.graph = fx.Graph()
        self.done: dict[fx.Node, Any] = {}
        self.inputs: list[InputSpec] = []
        self.constants: dict[str, torch.Tensor] = {}

    def build(self) -> ExportedProgram:
        self._constants()
        updated = self._body()
        outputs = self._outputs(updated)
        count = len(self.program.signature.input_names) + (len(self.state) if self.state_as_inputs else 0)
        results = sum(spec.kind is OutputKind.USER_OUTPUT for spec in outputs)
        branches = {
            str(node.target): self._branch(str(node.target))
            for node in self.source.find_nodes(op="get_attr")
            if node.target in self.program.branches
        }
        return ExportedProgram(
            root=branches,
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.inputs, outputs),
            state_dict=dict(self.constants),
            range_constraints=self._ranges(),
            module_call_graph=[ModuleCallEntry("", _call_signature(count, results))],
        )

    def _branch(self, name: str) -> fx.GraphModule:
        graph = fx.Graph()
        done: dict[fx.Node, Any] = {}
        inner: dict[str, Any] = {}
        for node in self.program.branches[name].nodes:
            if node.op == "placeholder":
                done[node] = graph.placeholder(_identifier(name_of(node)))
                done[node].meta = _meta(node)
            elif node.op == "call_function":
                done[node] = _copy_call(graph, node, done)
            elif node.op == "output":
                result = graph.output(_own_results(graph, node.args[0], done))
                result.meta = {"val": fx.node.map_arg(node.args[0], lambda each: each.meta.get("val"))}
            elif node.target in self.program.branches:
                inner[str(node.target)] = self._branch(str(node.target))
                done[node] = graph.get_attr(str(node.target))
                done[node].meta = _meta(node)
            else:
                raise BackendError(
                    f"branch {name!r} refers to {node.target!r}: pass constants to torch.cond as operands"
                )
        return fx.GraphModule(inner, graph)

    def _constants(self) -> None:
        # Lifted constants come before the inputs, as torch.export puts them. One placeholder serves every get_attr.
        lifted: dict[str, fx.Node] = {}
        for node in self.source.find_nodes(op="get_attr"):
            name = str(node.target)
            if name in self.program.branches or (self.state_as_inputs and name in self.state):
                continue
            if name not in lifted:
                lifted[name] = self._placeholder(f"c_{name}", node)
                self.constants[name] = self.program.constants[name]
                spec = InputSpec(InputKind.BUFFER, TensorArgument(lifted[name].name), name, persistent=True)
                self.inputs.append(spec)
            self.done[node] = lifted[name]

    def _body(self) -> dict[str, fx.Node]:
        wanted = {str(node.target): node for node in placeholders(self.source)}
        for name in self.program.signature.input_names:
            node = wanted[name]
            self.done[node] = self._placeholder(name, node)
            self.inputs.append(InputSpec(InputKind.USER_INPUT, _argument(self.done[node]), None))
        if self.state_as_inputs:
            self._state_inputs()
        writes = set(updates(self.source))
        updated: dict[str, fx.Node] = {}
        for node in self.source.nodes:
            if node in writes:
                value = self.done[node.args[1]]
                updated[str(node.args[0].target)] = self.done[node] = value
            elif node.op == "get_attr" and node not in self.done:
                self.done[node] = self.graph.get_attr(str(node.target))
                self.done[node].meta = _meta(node)
            elif node.op == "call_function":
                self.done[node] = _copy_call(self.graph, node, self.done)
        return updated

    def _state_inputs(self) -> None:
        lifted: dict[str, fx.Node] = {}
        for node in self.source.find_nodes(op="get_attr"):
            name = str(node.target)
            if name in self.state:
                if name not in lifted:
                    lifted[name] = self._placeholder(name, node)
                self.done[node] = lifted[name]
        for name in self.state:
            self.inputs.append(InputSpec(InputKind.USER_INPUT, _argument(lifted[name]), None))

    def _outputs(self, updated: dict[str, fx.Node]) -> list[OutputSpec]:
        named = output_of(self.source).args[0]
        assert isinstance(named, dict)
        results = [self.done[named[name]] for name in self.program.signature.output_names]
        state = [updated[name] for name in self.state]
        specs = [OutputSpec(OutputKind.USER_OUTPUT, _argument(node), None) for node in results]
        if self.state_as_inputs:
            specs += [OutputSpec(OutputKind.USER_OUTPUT, _argument(node), None) for node in state]
            values = results + state
        else:
            writes = zip(self.state, state, strict=True)
            specs = [OutputSpec(OutputKind.BUFFER_MUTATION, _argument(node), name) for name, node in writes] + specs
            values = state + results
        self.graph.output(tuple(values))
        return specs

    def _placeholder(self, name: str, node: fx.Node) -> fx.Node:
        made = self.graph.placeholder(_identifier(name))
        made.meta = _meta(node)
        # torch takes the target for the name of the argument: it must be the unique one.
        made.target = made.name
        return made

    def _ranges(self) -> dict[sympy.Symbol, Any]:
        shape_env = self.program.fake_mode.shape_env
        if shape_env is None:
            return {}
        used: dict[sympy.Symbol, None] = {}
        for node in self.graph.nodes:
            value = node.meta.get("val")
            sizes: Iterable[Any] = value.shape if isinstance(value, torch.Tensor) else (value,)
            for size in sizes:
                if isinstance(size, torch.SymInt):
                    used |= dict.fromkeys(sorted(size.node.expr.free_symbols, key=str))
        return {symbol: shape_env.var_to_range[symbol] for symbol in used if symbol in shape_env.var_to_range}


def _own_results(graph: fx.Graph, results: Any, done: dict[fx.Node, Any]) -> Any:
    """Return what a branch returns, copied where it is an input or stands twice: torch.cond allows neither."""
    seen: set[fx.Node] = set()

    def own(node: fx.Node) -> fx.Node:
        made: fx.Node = done[node]
        if isinstance(node.meta.get("val"), torch.Tensor) and (made.op == "placeholder" or made in seen):
            made = graph.call_function(torch.ops.aten.clone.default, (made,))
            made.meta = _meta(node)
        seen.add(made)
        return made

    return fx.node.map_arg(results, own)


def _copy_call(graph: fx.Graph, node: fx.Node, done: dict[fx.Node, Any]) -> fx.Node:
    made = graph.create_node(
        "call_function",
        node.target,
        fx.node.map_arg(node.args, done.__getitem__),
        fx.node.map_arg(node.kwargs, done.__getitem__),
        _identifier(name_of(node)),
    )
    made.meta = _meta(node)
    return made


def _meta(node: fx.Node) -> dict[str, Any]:
    provenance = provenance_of(node)
    origins = provenance.origins if provenance is not None else ()
    meta: dict[str, Any] = {"val": node.meta.get("val")} if "val" in node.meta else {}
    # The innermost module comes last: torch reads this as the stack of one call.
    stack = {origin.module or "root": (origin.module, origin.kind or "Module") for origin in origins}
    meta["nn_module_stack"] = stack or {"root": ("", "Module")}
    frames = [f'File "{each.file}", line {each.line}, in forward\n    {each.code}' for each in origins if each.file]
    meta["stack_trace"] = "\n".join(frames)
    meta["custom"] = {"burnish_name": name_of(node), "burnish_module": module_of(node)}
    return meta


def _argument(node: fx.Node) -> ArgumentSpec:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return TensorArgument(node.name)
    if isinstance(value, (bool, torch.SymBool)):
        return SymBoolArgument(node.name)
    if isinstance(value, (int, torch.SymInt)):
        return SymIntArgument(node.name)
    if isinstance(value, (float, torch.SymFloat)):
        return SymFloatArgument(node.name)
    return ConstantArgument(node.name, value)


def _identifier(name: str) -> str:
    text = _ILLEGAL.sub("_", name)
    return text if text and not text[0].isdigit() else f"_{text}"


def _call_signature(inputs: int, outputs: int) -> ModuleCallSignature:
    arguments: tuple[tuple[int, ...], dict[str, int]] = (tuple(range(inputs)), {})
    return ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=pytree.tree_flatten(arguments)[1],
        out_spec=pytree.tree_flatten(tuple(range(outputs)))[1],
    )
