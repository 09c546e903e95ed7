"""Nodes where they stand: with the types, shapes and constants of what they read, and who reads what they make.

Not handled: sequences, optionals and sparse tensors have no element type here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch

from burnish.backends.onnx.emit import MODULE
from burnish.compiler.backend import Finding

__all__ = ["STANDARD", "Node", "Scope", "dtype_name"]

STANDARD = ("", "ai.onnx")
"""The names of the domain of ONNX's own operators."""


def dtype_name(number: int) -> str:
    """Return the name of ONNX's element type `number` in the words of PyTorch and NumPy: "float32"."""
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


@dataclass(slots=True, eq=False)
class Scope:
    """One graph: the model's, or that of a branch, which sees the values of those around it.

    Attributes:
        proto: the graph.
        parent: the graph around it.
        opsets: version by domain; "" is ONNX's own.
        weights: the data of large initializers.
        nodes: its nodes, in order.
        types: what is known of its values.
        constants: what its initializers and Constant nodes hold.
        producers: the node that makes each value.
        users: the nodes that read each value, those of branches too.
        known: values that depend on no input.
        starts: names of its inputs.
        ends: names of its results.
    """

    proto: onnx.GraphProto
    parent: Scope | None
    opsets: Mapping[str, int]
    weights: Mapping[str, torch.Tensor]
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    producers: dict[str, Node] = field(default_factory=dict)
    users: dict[str, list[Node]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    starts: set[str] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)

    def dtype(self, value: str) -> str:
        """Return the element type of a value, "float32"; "" where it is unknown."""
        known = self._find("types", value)
        number = known.tensor_type.elem_type if known is not None and known.HasField("tensor_type") else 0
        return dtype_name(number) if number else ""

    def shape(self, value: str) -> tuple[int | str, ...] | None:
        """Return sizes: numbers, symbols, "" for an unknown one; None where even the rank is unknown."""
        known = self._find("types", value)
        if known is None or not known.HasField("tensor_type") or not known.tensor_type.HasField("shape"):
            return None
        return tuple(
            each.dim_value if each.HasField("dim_value") else each.dim_param for each in known.tensor_type.shape.dim
        )

    def constant(self, value: str) -> np.ndarray[Any, Any] | None:
        """Return what an initializer or a Constant holds; None for all else."""
        held: onnx.TensorProto | None = self._find("constants", value)
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
            if value in scope.known:
                return True
            scope = scope.parent
        return False

    def producer(self, value: str) -> Node | None:
        """Return the node that makes a value; None for inputs and initializers."""
        found: Node | None = self._find("producers", value)
        return found

    def readers(self, value: str) -> list[Node]:
        """Return the nodes that read a value, those of branches too."""
        return self.users.get(value, [])

    def is_output(self, value: str) -> bool:
        """Tell whether a value is a result of this graph."""
        return value in self.ends

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
            if value in scope.producers or value in scope.constants or value in scope.starts:
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


def _plain(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype is torch.bfloat16 else dtype
