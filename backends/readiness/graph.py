"""An ONNX graph with what the rules ask of it, across branches and loop bodies.

Types and shapes are those of ONNX's own inference; behind an operator that it does not know they are unknown, and
rules pass over what is unknown. Local functions are inlined first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch

from burnish.backends.readiness.nodes import STANDARD, Node, Scope
from burnish.compiler.errors import FileFormatError

__all__ = ["Graph"]

# Far above any version that there will be, and what ONNX's own functions take.
_VERSIONS = 1 << 31
# Results that are known when the engine is built, whatever the input holds.
_MEASURES = ("Shape", "Size")
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


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
            FileFormatError: a node reads what nothing before it makes or makes what is there already, or ONNX cannot
                make sense of the graph.
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
    scope.types.update({each.name: each.type for each in (*proto.value_info, *proto.input, *proto.output)})
    scope.constants.update({each.name: each for each in proto.initializer})
    scope.starts.update(each.name for each in proto.input)
    scope.ends.update(each.name for each in proto.output)
    for held in proto.initializer:
        scope.types.setdefault(held.name, onnx.helper.make_tensor_type_proto(held.data_type, list(held.dims)))
    scope.known.update(scope.constants.keys() - scope.starts)
    for each in proto.node:
        node = Node(each, scope)
        for value in each.input:
            if value and not scope._has(value):
                raise FileFormatError(f"{name}: node {node.name!r} reads {value!r}, which nothing before it makes")
            _note_reader(scope, value, node)
        for value in each.output:
            if value and (value in scope.producers or value in scope.constants or value in scope.starts):
                raise FileFormatError(f"{name}: node {node.name!r} makes {value!r}, which is there already")
        scope.nodes.append(node)
        scope.producers.update({value: node for value in each.output if value})
        _note_constant(node)
        nested = [attribute.g for attribute in each.attribute if attribute.HasField("g")]
        if not nested and _folds(node):
            scope.known.update(each.output)
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
        if value in owner.producers or value in owner.constants or owner.parent is None:
            owner.users.setdefault(value, []).append(node)
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
        node.scope.constants[node.proto.output[0]] = held


def _folds(node: Node) -> bool:
    if node.operator in _MEASURES:
        sizes = node.shape(0)
        return sizes is not None and all(isinstance(size, int) for size in sizes)
    if node.operator in _RANDOM:
        return False
    return all(node.scope.is_known(value) for value in node.proto.input if value)
