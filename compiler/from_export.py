"""Turn an ExportedProgram into a Program: constants become get_attr nodes, names become stable, mutation goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from burnish.compiler import structure
from burnish.compiler.conditions import conditions_of
from burnish.compiler.errors import CaptureError
from burnish.compiler.functional import IDENTITIES, functional
from burnish.compiler.graphs import NameTable, calls
from burnish.compiler.operators import operator_name
from burnish.compiler.program import Program, Signature
from burnish.compiler.provenance import Origin, Provenance, from_export, set_provenance
from burnish.compiler.sizes import expression, static_size

__all__ = ["program_from_export"]

_aten = torch.ops.aten


def program_from_export(
    exported: ExportedProgram,
    *,
    notes: tuple[str, ...] = (),
    samples: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    parameters: tuple[str, ...] = (),
) -> Program:
    """Build a Program from `exported`.

    Args:
        notes: what capture already knows to be worth telling.
        samples: example inputs as (args, kwargs); by default those that the ExportedProgram carries.
        parameters: names of the model's positional parameters.
    """
    return _Importer(*functional(exported)).program(notes, samples or exported.example_inputs, parameters)


class _Importer:
    """Builds the Program's graphs from the exported one, node by node."""

    def __init__(self, exported: ExportedProgram, twins: Mapping[fx.Node, OpOverload]) -> None:
        self.exported, self.twins = exported, twins
        self.constants: dict[str, torch.Tensor] = {}
        self.branches: dict[str, fx.Graph] = {}
        self.graph = fx.Graph()
        self.done: dict[fx.Node, Any] = {}
        self.by_tensor: dict[tuple[Any, ...], str] = {}
        self.inputs: list[structure.Leaf | structure.Literal] = []
        self.notes: list[str] = []

    def program(self, notes: tuple[str, ...], samples: Any, parameters: tuple[str, ...]) -> Program:
        signature = self.exported.graph_signature
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        for node in self.exported.graph.find_nodes(op="placeholder"):
            self._input(node, specs[node.name])
        for node in self.exported.graph.nodes:
            if node.op == "get_attr":
                self._attribute(node)
            elif node.op == "call_function" and node.target in IDENTITIES:
                self.done[node] = self.done[node.args[0]]
            elif node.op == "call_function":
                self._call(node)
        outputs = self._outputs()
        name_nodes(self.graph)
        program = Program(
            graphs={"main": self.graph},
            branches=self.branches,
            constants=self.constants,
            signature=Signature(self._input_structure(), outputs, parameters),
            fake_mode=self._fake_mode(),
            notes=(*notes, *self.notes),
        )
        program.conditions = conditions_of(program.fake_mode.shape_env, _input_symbols(self.graph))
        program.samples = self._samples(program, samples)
        program.notes += tuple(static_dimension_notes(program))
        return program

    def _call(self, node: fx.Node) -> None:
        self.done[node] = copied = self.graph.node_copy(node, self.done.__getitem__)
        copied.meta = _clean_meta(node)
        if node.target is _aten.batch_norm.default:
            # A setting of the machine that captured, not of the model: the same text everywhere.
            copied.args = (*copied.args[:8], True)
        if node in self.twins:
            # From here on the values that it wrote to, a chain of them perhaps, are its result.
            copied.target = self.twins[node]
            written: Any = node
            while written in self.twins:
                written = written.args[0]
                self.done[written] = copied

    def _input(self, node: fx.Node, spec: Any) -> None:
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument):
                self.inputs.append(structure.Literal(spec.arg.value))
                return
            copied = self.graph.placeholder(node.name)
            copied.meta = {"val": _settled(node.meta.get("val")), "name": node.name}
            set_provenance(copied, Provenance((Origin(""),), "capture"))
            self.inputs.append(structure.Leaf(node.name))
            self.done[node] = copied
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            self.done[node] = self._constant(spec.target, self._tensor(spec), node.meta.get("val"))
        else:
            raise CaptureError(f"input {spec.arg.name!r} is a {spec.kind.name}, which a Program cannot hold")

    def _tensor(self, spec: Any) -> torch.Tensor:
        table = self.exported.state_dict if spec.target in self.exported.state_dict else self.exported.constants
        tensor: torch.Tensor = table[spec.target]
        return tensor.detach()

    def _constant(self, name: str, tensor: torch.Tensor, fake: Any) -> fx.Node:
        # Tied weights are one tensor under several names: one constant, whatever it is called.
        key: tuple[Any, ...] = (
            tensor.data_ptr(),
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
        )
        if tensor.numel() == 0 or tensor.device.type == "meta":
            key = (name,)
        first = self.by_tensor.setdefault(key, name)
        if first in self.constants:
            return self._constant_node(first)
        self.constants[first] = tensor
        node = self.graph.get_attr(first)
        node.meta = {"val": fake, "name": first}
        set_provenance(node, Provenance((Origin(first.rpartition(".")[0]),), "capture"))
        return node

    def _constant_node(self, name: str) -> fx.Node:
        node: fx.Node = next(each for each in self.graph.find_nodes(op="get_attr") if each.target == name)
        return node

    def _attribute(self, node: fx.Node) -> None:
        self.done[node] = self._reference(self.graph, self.exported.graph_module, str(node.target), "")

    def _reference(self, graph: fx.Graph, owner: fx.GraphModule, name: str, prefix: str) -> fx.Node:
        """Return a node of `graph` for a branch, which is taken over; `prefix` tells those of branches apart."""
        module = getattr(owner, name, None)
        if not isinstance(module, fx.GraphModule):
            raise CaptureError(f"the graph refers to {name!r}, which is neither a constant nor a branch")
        unique = f"{prefix}{name}"
        if unique not in self.branches:
            self.branches[unique] = self._branch(module, f"{unique}_")
        reference = graph.get_attr(unique)
        reference.meta = {"name": unique}
        set_provenance(reference, Provenance((Origin(""),), "capture"))
        return reference

    def _branch(self, module: fx.GraphModule, prefix: str) -> fx.Graph:
        copied = fx.Graph()
        done: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                done[node] = self._reference(copied, module, str(node.target), prefix)
                continue
            done[node] = new = copied.node_copy(node, done.__getitem__)
            new.meta = _clean_meta(node)
            if node.op == "placeholder":
                new.meta["name"] = new.name
        name_nodes(copied)
        return copied

    def _outputs(self) -> structure.Structure:
        result = self.exported.graph.output_node().args[0]
        assert isinstance(result, (list, tuple))
        values: list[Any] = []
        for spec, value in zip(self.exported.graph_signature.output_specs, result, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                values.append(value)
            elif spec.kind is OutputKind.BUFFER_MUTATION:
                self._update(str(spec.target), self.done[value])
            elif spec.kind is OutputKind.USER_INPUT_MUTATION:
                self.notes.append(f"the model writes to its input {spec.target!r}: the compiled model does not")
        spec_tree = self.exported.call_spec.out_spec
        names = iter(_output_names(spec_tree))
        leaves: list[structure.Leaf | structure.Literal] = []
        named: dict[str, fx.Node] = {}
        for value in values:
            name = next(names)
            if isinstance(value, fx.Node):
                named[name] = self.done[value]
                leaves.append(structure.Leaf(name))
            else:
                leaves.append(structure.Literal(value))
        self.graph.output(named)
        set_provenance(self.graph.output_node(), Provenance((Origin(""),), "capture"))
        return structure.structure_of(_filled(spec_tree), iter(leaves))

    def _update(self, target: str, value: fx.Node) -> None:
        # A tied or unused buffer may be known under another name, or not at all.
        name = target if target in self.constants else None
        if name is None:
            raise CaptureError(f"the model updates {target!r}, which is not a buffer of it")
        buffer = self._constant_node(name)
        node = self.graph.call_function(_aten.copy_.default, (buffer, value))
        node.meta = {"val": buffer.meta.get("val"), "name_hint": f"{name}.update"}
        set_provenance(node, value.meta["provenance"])

    def _input_structure(self) -> structure.Structure:
        spec = self.exported.call_spec.in_spec
        return structure.structure_of(_filled(spec), iter(self.inputs))

    def _fake_mode(self) -> FakeTensorMode:
        for node in self.exported.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, FakeTensor):
                mode: FakeTensorMode = value.fake_mode
                return mode
        raise CaptureError("the model has no tensor at all: there is nothing to compile")

    def _samples(self, program: Program, samples: Any) -> dict[str, Any]:
        if samples is None:
            return {}
        args, kwargs = samples
        found = structure.flatten(program.signature.inputs, (args, kwargs), "example inputs")
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                found[name] = value.detach().clone()
        return found


def _clean_meta(node: fx.Node) -> dict[str, Any]:
    return {"val": _settled(node.meta.get("val")), "provenance": from_export(node)}


def _settled(value: Any) -> Any:
    """Return a type with every symbolic size that export found to be a fixed number as that number."""
    if isinstance(value, (tuple, list)):
        return type(value)(_settled(each) for each in value)
    if isinstance(value, torch.SymInt):
        return _settled_size(value)
    if not isinstance(value, FakeTensor) or value.layout is not torch.strided:
        return value
    sizes = [_settled_size(size) for size in value.shape]
    if all(a is b for a, b in zip(sizes, value.shape, strict=True)):
        return value
    strides = [_settled_size(stride) for stride in value.stride()]
    with value.fake_mode:
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)


def _settled_size(size: Any) -> Any:
    known = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else None
    return size if known is None else known


def _filled(spec: Any) -> Any:
    # Tensors, as what counts as a part of a plain object is what holds one.
    return spec.unflatten([torch.empty(0, device="meta")] * spec.num_leaves)


def _output_names(spec: Any) -> Iterator[str]:
    """Yield names made of the keys in the output's pytree: "output", "output_0", "logits", "states.0"."""
    paths = [path for path, _ in pytree.tree_flatten_with_path(_filled(spec))[0]]
    taken: set[str] = set()
    for path in paths:
        parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        name = "_".join(parts) if parts else "output"
        name = f"output_{name}" if name[:1].isdigit() else name
        while name in taken:
            name += "_"
        taken.add(name)
        yield name


def name_nodes(graph: fx.Graph) -> None:
    """Name every operator node of `graph` after its module path, and its operator where the module has several."""
    table = NameTable(fx.Graph())
    for node in graph.nodes:
        if "name" in node.meta:
            table.unique(node.meta["name"])
    owned: dict[str, int] = {}
    for node in calls(graph):
        path = _module_path(node)
        owned[path] = owned.get(path, 0) + 1
    parents = {path.rpartition(".")[0] for path in owned}
    for node in calls(graph):
        path, hint = _module_path(node), node.meta.pop("name_hint", None)
        alone = path and owned[path] == 1 and path not in parents
        base = operator_name(node.target).split(".")
        short = base[1] if len(base) > 1 else base[0]
        node.meta["name"] = table.unique(hint or (path if alone else f"{path}.{short}" if path else short))


def _module_path(node: fx.Node) -> str:
    provenance = node.meta["provenance"]
    return str(provenance.origins[0].module) if provenance.origins else ""


def _input_symbols(graph: fx.Graph) -> set[Any]:
    return {
        symbol
        for node in graph.find_nodes(op="placeholder")
        if isinstance(value := node.meta.get("val"), torch.Tensor)
        for size in value.shape
        if isinstance(size, torch.SymInt)
        for symbol in expression(size).free_symbols
    }


def static_dimension_notes(program: Program) -> Iterator[str]:
    """Yield a note for every tensor input whose dimension 0 is a fixed number."""
    for graph in program.graphs.values():
        for node in graph.find_nodes(op="placeholder"):
            value = node.meta.get("val")
            size = static_size(value.shape[0]) if isinstance(value, torch.Tensor) and value.dim() else None
            if size is not None:
                yield f"input {node.target!r}: dimension 0 is fixed at {size}, the model depends on it"
