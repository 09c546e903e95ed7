"""An ONNX graph with what the rules ask of it: types, shapes, constants, producers and readers, across branches.

Types and shapes are those of ONNX's own inference; behind an operator that it does not know they are unknown, and
rules pass over what is unknown. Local functions are inlined first.

Not handled: sequences, optionals and sparse tensors have no element type here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch

from burnish.backends.onnx.emit import MODULE
from burnish.compiler.backend import Finding
from burnish.compiler.errors import FileFormatError

__all__ = ["STANDARD", "Graph", "Node", "Scope", "dtype_name"]

STANDARD = ("", "ai.onnx")
"""The names of the domain of ONNX's own operators."""

# Far above any version that there will be, and what ONNX's own functions take.
_VERSIONS = 1 << 31
# Results that are known when the engine is built, whatever the input holds.
_MEASURES = ("Shape", "Size")
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def dtype_name(number: int) -> str:
    """Return the name of ONNX's element type `number` in the words of PyTorch and NumPy: "float32"."""
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


@dataclass(frozen=True, slots=True)
class Graph:
    """A model whose graph is checked.

    Attributes:
        model: as it is in the file, functions inlined.
        weights: the data of large initializers.
        main: its graph.
        scopes: that, and the graphs of branches and loop bodies.
    """

    model: onnx.ModelProto
    weights: Mapping[str, torch.Tensor]
    main: Scope
    scopes: tuple[Scope, ...]

    @staticmethod
    def of(model: onnx.ModelProto, weights: Mapping[str, torch.Tensor], name: str) -> Graph:
        """Look through a model.

        Args:
            model: its graph; it is not changed.
            weights: the data of large initializers, which the graph lacks.
            name: of the file, for messages.

        Raises:
            FileFormatError: a node reads what nothing before it makes, or ONNX cannot make sense of the graph.
        """
        for each in model.opset_import:
            if not 0 < each.version < _VERSIONS:
                raise FileFormatError(f"{name}: there is no opset {each.version}")
        try:
            if model.functions:
                model = onnx.inliner.inline_local_functions(model)
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
            raise FileFormatError(f"{name}: ONNX cannot make sense of the graph: {error}") from error
        opsets = {each.domain if each.domain not in STANDARD else "": each.version for each in model.opset_import}
        scopes: list[Scope] = []
        main = _scope(inferred.graph, None, opsets, weights, scopes, name)
        return Graph(model, weights, main, tuple(scopes))

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators that the file imports; 0 where it imports none."""
        return self.main.opsets.get("", 0)

    def nodes(self) -> Iterator[Node]:
        """Yield all nodes, those of branches too."""
        for scope in self.scopes:
            yield from scope.nodes


@dataclass(slots=True, eq=False)
class Scope:
    """One graph: the model's, or that of a branch, which sees the values of those around it.

    Attributes:
        proto: the graph.
        parent: the graph around it.
        opsets: version by domain; "" is ONNX's own.
        weights: the data of large initializers.
        nodes: its nodes, in order.
    """

    proto: onnx.GraphProto
    parent: Scope | None
    opsets: Mapping[str, int]
    weights: Mapping[str, torch.Tensor]
    nodes: list[Node] = field(default_factory=list)
    _types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    _constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _producers: dict[str, Node] = field(default_factory=dict)
    _readers: dict[str, list[Node]] = field(default_factory=dict)
    _folding: set[str] = field(default_factory=set)
    _starts: set[str] = field(default_factory=set)
    _ends: set[str] = field(default_factory=set)

    def dtype(self, value: str) -> str:
        """Return the element type of a value, "float32"; "" where it is unknown."""
        known = self._find("_types", value)
        number = known.tensor_type.elem_type if known is not None and known.HasField("tensor_type") else 0
        return dtype_name(number) if number else ""

    def shape(self, value: str) -> tuple[int | str, ...] | None:
        """Return sizes: numbers, symbols, "" for an unknown one; None where even the rank is unknown."""
        known = self._find("_types", value)
        if known is None or not known.HasField("tensor_type") or not known.tensor_type.HasField("shape"):
            return None
        return tuple(
            each.dim_value if each.HasField("dim_value") else each.dim_param for each in known.tensor_type.shape.dim
        )

    def constant(self, value: str) -> np.ndarray[Any, Any] | None:
        """Return what an initializer or a Constant holds; None for all else."""
        held: onnx.TensorProto | None = self._find("_constants", value)
        if held is None:
            return None
        if held.data_location == onnx.TensorProto.EXTERNAL:
            weight = self.weights.get(value)
            return None if weight is None else weight.to(_plain(weight.dtype)).numpy()
        return np.asarray(onnx.numpy_helper.to_array(held))

    def is_known(self, value: str) -> bool:
        """Tell whether a value depends on no input, only on constants and static shapes."""
        scope: Scope | None = self
        while scope is not None:
            if value in scope._folding:
                return True
            scope = scope.parent
        return False

    def producer(self, value: str) -> Node | None:
        """Return the node that makes a value; None for inputs and initializers."""
        found: Node | None = self._find("_producers", value)
        return found

    def readers(self, value: str) -> list[Node]:
        """Return the nodes that read a value, those of branches too."""
        return self._readers.get(value, [])

    def is_output(self, value: str) -> bool:
        """Tell whether a value is a result of this graph."""
        return value in self._ends

    def inputs(self) -> list[str]:
        """Return the names of the inputs that have no initial value."""
        given = {each.name for each in self.proto.initializer}
        return [each.name for each in self.proto.input if each.name not in given]

    def _find(self, table: str, value: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            found = getattr(scope, table).get(value)
            if found is not None:
                return found
            scope = scope.parent
        return None

    def _has(self, value: str) -> bool:
        scope: Scope | None = self
        while scope is not None:
            if value in scope._producers or value in scope._constants or value in scope._starts:
                return True
            scope = scope.parent
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node where it stands."""

    proto: onnx.NodeProto
    scope: Scope

    @property
    def name(self) -> str:
        """Its name, or that of its first result."""
        return self.proto.name or next(iter(self.proto.output), "")

    @property
    def operator(self) -> str:
        """Its operator, behind the domain where that is not ONNX's own."""
        return self.proto.op_type if self.is_standard else f"{self.proto.domain}.{self.proto.op_type}"

    @property
    def is_standard(self) -> bool:
        """Whether its operator is one of ONNX's own domain."""
        return self.proto.domain in STANDARD

    @property
    def module(self) -> str:
        """The path of the module that it came from, which burnish writes into its files."""
        return next((each.value for each in self.proto.metadata_props if each.key == MODULE), "")

    def finding(self, rule: str, reason: str, fix: str = "") -> Finding:
        """Return a finding about this node."""
        return Finding(self.name, self.operator, reason, self.module, rule, fix)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute; text as `str`."""
        for each in self.proto.attribute:
            if each.name == name:
                value = onnx.helper.get_attribute_value(each)
                return value.decode(errors="replace") if isinstance(value, bytes) else value
        return default

    def input(self, index: int) -> str:
        """Return the name of an input; "" where it is left out."""
        return self.proto.input[index] if index < len(self.proto.input) else ""

    def dtype(self, index: int) -> str:
        """Return the element type of an input, "" where it is unknown or left out."""
        return self.scope.dtype(self.input(index))

    def shape(self, index: int) -> tuple[int | str, ...] | None:
        """Return the sizes of an input, None where even the rank is unknown."""
        return self.scope.shape(self.input(index))

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return what a constant input holds, None for others."""
        return self.scope.constant(self.input(index))

    def source(self, index: int) -> Node | None:
        """Return the node that makes an input."""
        return self.scope.producer(self.input(index))

    def readers(self) -> list[Node]:
        """Return the nodes that read its first result."""
        return self.scope.readers(self.proto.output[0])


def _scope(
    proto: onnx.GraphProto,
    parent: Scope | None,
    opsets: Mapping[str, int],
    weights: Mapping[str, torch.Tensor],
    scopes: list[Scope],
    name: str,
) -> Scope:
    if not all(isinstance(text, str) for text in _texts(proto)):
        # protobuf hands out what is not UTF-8 as bytes.
        raise FileFormatError(f"{name}: damaged: a name in it is not UTF-8")
    scope = Scope(proto, parent, opsets, weights)
    scopes.append(scope)
    scope._types.update({each.name: each.type for each in (*proto.value_info, *proto.input, *proto.output)})
    scope._constants.update({each.name: each for each in proto.initializer})
    scope._starts.update(each.name for each in proto.input)
    scope._ends.update(each.name for each in proto.output)
    for held in proto.initializer:
        scope._types.setdefault(held.name, onnx.helper.make_tensor_type_proto(held.data_type, list(held.dims)))
    scope._folding.update(scope._constants.keys() - scope._starts)
    for each in proto.node:
        node = Node(each, scope)
        for value in each.input:
            if value and not scope._has(value):
                raise FileFormatError(f"{name}: node {node.name!r} reads {value!r}, which nothing before it makes")
            _note_reader(scope, value, node)
        scope.nodes.append(node)
        scope._producers.update({value: node for value in each.output if value})
        _note_constant(node)
        nested = [attribute.g for attribute in each.attribute if attribute.HasField("g")]
        if not nested and _folds(node):
            scope._folding.update(each.output)
        for inner in nested:
            _scope(inner, scope, opsets, weights, scopes, name)
    for end in proto.output:
        if not scope._has(end.name):
            raise FileFormatError(f"{name}: the output {end.name!r} is made by no node")
    return scope


def _texts(proto: onnx.GraphProto) -> Iterator[Any]:
    """Yield all names in a graph, without those in its branches."""
    for node in proto.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
        yield from (text for entry in node.metadata_props for text in (entry.key, entry.value))
    for value in (*proto.input, *proto.output, *proto.value_info):
        yield value.name
        yield from (size.dim_param for size in value.type.tensor_type.shape.dim)
    yield from (held.name for held in proto.initializer)


def _note_reader(scope: Scope, value: str, node: Node) -> None:
    owner: Scope | None = scope
    while owner is not None:
        if value in owner._producers or value in owner._constants or owner.parent is None:
            owner._readers.setdefault(value, []).append(node)
            return
        owner = owner.parent


def _note_constant(node: Node) -> None:
    if node.operator != "Constant" or not node.proto.attribute:
        return
    made = node.proto.attribute[0]
    value = onnx.helper.get_attribute_value(made)
    held = value if made.name == "value" else None
    if made.name in ("value_float", "value_floats"):
        held = onnx.numpy_helper.from_array(np.asarray(value, dtype=np.float32))
    elif made.name in ("value_int", "value_ints"):
        held = onnx.numpy_helper.from_array(np.asarray(value, dtype=np.int64))
    if held is not None:
        node.scope._constants[node.proto.output[0]] = held


def _folds(node: Node) -> bool:
    if node.operator in _MEASURES:
        sizes = node.shape(0)
        return sizes is not None and all(isinstance(size, int) for size in sizes)
    if node.operator in _RANDOM:
        return False
    return all(node.scope.is_known(value) for value in node.proto.input if value)


def _plain(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype is torch.bfloat16 else dtype
