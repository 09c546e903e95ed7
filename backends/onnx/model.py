"""An ONNX model in memory: the graph as protobuf, and the weights as torch tensors beside it, shared with the Program.

Initializers of more than `INLINE_BYTES` bytes are marked external in the protobuf and held in `weights`; this is also
how ONNX Runtime gets them, so that a model above protobuf's 2 GB needs no file to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from burnish.backends.onnx.emit import MODULE, NODE, Lowered
from burnish.compiler.binding import Binding
from burnish.compiler.errors import BackendError, FileFormatError

__all__ = ["DTYPES", "INLINE_BYTES", "METADATA", "RUNTIMES", "Convention", "Model", "Place", "model_of"]

INLINE_BYTES = 1024
METADATA = "burnish"
RUNTIMES = ("onnxruntime", "openvino")
_FORMAT = 1

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
}
"""The element types that go in and out, by ONNX's number for them."""


@dataclass(frozen=True, slots=True)
class Convention:
    """How the graph is called.

    Attributes:
        binding: the model's calling convention; its inputs are the graph's inputs by name.
        outputs: the graph output for every output of the binding.
        state: graph input and graph output of every buffer that a run updates.
        numbers: outputs that are plain numbers, with their type.
    """

    binding: Binding
    outputs: Mapping[str, str]
    state: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text that is kept in the file's metadata."""
        return json.dumps(
            {
                "format": _FORMAT,
                "binding": self.binding.to_json(),
                "outputs": dict(self.outputs),
                "state": {name: list(ends) for name, ends in self.state.items()},
                "numbers": dict(self.numbers),
            }
        )

    @staticmethod
    def from_json(text: str) -> Convention:
        """Read what `to_json` returned.

        Raises:
            FileFormatError: the text has another form, or is of another version.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise FileFormatError(f"format {data['format']!r} is not known: this burnish reads {_FORMAT}")
            return Convention(
                Binding.from_json(data["binding"]),
                {str(name): str(value) for name, value in data["outputs"].items()},
                {str(name): (str(ends[0]), str(ends[1])) for name, ends in data["state"].items()},
                {str(name): str(kind) for name, kind in data["numbers"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise FileFormatError(f"its metadata {METADATA!r} cannot be read: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a graph node comes from.

    Attributes:
        module: path of the module.
        node: the Program's node.
        operator: its ONNX operator.
        before: the graph nodes whose results it reads.
        name: the graph node; "" where it is not known.
    """

    module: str
    node: str
    operator: str
    before: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A graph, its weights and its calling convention.

    Attributes:
        graph: without metadata of its own, and without the data of large initializers.
        weights: those data by initializer, contiguous, on the CPU.
        convention: how it is called.
        initial: initial values of the buffers that a run updates.
        runtime: what the file was saved for.
    """

    graph: onnx.ModelProto
    weights: Mapping[str, torch.Tensor]
    convention: Convention
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)
    runtime: str = RUNTIMES[0]

    def constant_outputs(self) -> frozenset[str]:
        """Return the graph outputs that depend on no input: ONNX Runtime may hand out its own copy of these."""
        # An initializer may be an input too, in files from elsewhere.
        live = {value.name for value in self.graph.graph.input} - {each.name for each in self.graph.graph.initializer}
        for node in self.graph.graph.node:
            # A branch of an If reads outer values by name: count the node as live.
            nested = any(attribute.HasField("g") for attribute in node.attribute)
            random = node.op_type.startswith("Random") or node.op_type == "Bernoulli"
            if nested or random or not live.isdisjoint(node.input):
                live.update(node.output)
        return frozenset(value.name for value in self.graph.graph.output if value.name not in live)

    def is_quantized(self) -> bool:
        """Tell whether the graph quantizes or dequantizes anything."""
        return any(
            "QuantizeLinear" in node.op_type or node.op_type == "DequantizeLinear" for node in _nodes(self.graph.graph)
        )

    def places(self) -> dict[str, Place]:
        """Return where every node of the graph comes from, by its name."""
        producers = {value: node.name for node in self.graph.graph.node for value in node.output}
        found = {}
        for node in self.graph.graph.node:
            data = {entry.key: entry.value for entry in node.metadata_props}
            before = tuple(producers[value] for value in node.input if value in producers)
            found[node.name] = Place(data.get(MODULE, ""), data.get(NODE, ""), node.op_type, before, node.name)
        return found

    def check(self) -> None:
        """Check the graph by ONNX's own rules, types and shapes included.

        Raises:
            BackendError: it breaks one.
        """
        # Large weights have nothing to check: inputs of their type stand in for them.
        stand_in = onnx.ModelProto()
        stand_in.CopyFrom(self.graph)
        kept = [each for each in stand_in.graph.initializer if each.name not in self.weights]
        inputs = {each.name for each in stand_in.graph.input}
        for each in stand_in.graph.initializer:
            if each.name in self.weights and each.name not in inputs:
                value = onnx.helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
                stand_in.graph.input.append(value)
        del stand_in.graph.initializer[:]
        stand_in.graph.initializer.extend(kept)
        try:
            onnx.checker.check_model(stand_in, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise BackendError(f"onnx.checker refuses the graph: {error}") from error

    def bytes(self) -> int:
        """Return the bytes of graph and weights."""
        weights = sum(each.nbytes for each in self.weights.values())
        return int(self.graph.ByteSize()) + weights + sum(each.nbytes for each in self.initial.values())


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def model_of(lowered: Lowered, binding: Binding, constants: Mapping[str, torch.Tensor]) -> Model:
    """Make a Model of what `lower` returned.

    Args:
        constants: the Program's, for the initial values of its state.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, value in lowered.model.graph.initializers.items():
        raw: Any = getattr(value.const_value, "raw", None)
        if isinstance(raw, np.ndarray) and raw.flags.writeable and raw.dtype.kind in "fiub":
            # What the exporter computed, a transposed weight for one.
            raw = torch.from_numpy(raw)
        if isinstance(raw, torch.Tensor) and raw.nbytes > INLINE_BYTES and raw.dtype in DTYPES.values():
            weights[name] = raw.detach().cpu().contiguous()
            assert value.dtype is not None
            value.const_value = ir.ExternalTensor(
                "weights", 0, raw.nbytes, value.dtype, shape=ir.Shape(list(raw.shape)), name=name
            )
    graph = ir.to_proto(lowered.model)
    graph.producer_name, graph.producer_version = "burnish", ""
    convention = Convention(binding, lowered.outputs, lowered.state, lowered.numbers)
    # A copy: the model, which shares its buffers, may go on updating them.
    initial = {
        name: constants[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in lowered.state
    }
    return Model(graph, weights, convention, initial)
