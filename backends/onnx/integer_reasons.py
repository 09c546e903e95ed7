"""Why a runtime computes a node in floats: which of its rules for pairs of Quantize and Dequantize the graph misses.

ONNX Runtime's rules (1.31) are those of core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc; OpenVINO's
are of its low precision transformations, which want quantized operands and care for no result.

Cases not handled: nodes within branches of a conditional. A node that meets every rule here and is still float gets a
reason that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["Reasons"]

_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_UNARY = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "ReduceMean", "Sigmoid")
# What ONNX Runtime gives an integer kernel where the result is quantized too; a product may give floats.
_WITH_RESULT = frozenset(
    {"Add", "AveragePool", "Concat", "Conv", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Sigmoid"}
)
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_ATTENTION = dict.fromkeys(
    ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
    "its products are of two activations, and no integer kernel takes these",
)
_WITHOUT = {
    "onnxruntime": {
        "ConvTranspose": "transposed convolutions have no integer kernel",
        "ReduceMean": "ReduceMean has no integer kernel; GlobalAveragePool has",
        **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent layers have no integer kernel that takes pairs"),
        **_ATTENTION,
    },
    "openvino": _ATTENTION,
}
# Runtimes move a Dequantize behind these.
_MOVED = frozenset(
    {"Expand", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_LIMITS = ("Relu", "Clip")


class Reasons:
    """Finds reasons in a graph.

    Args:
        graph: what the runtime was given.
        runtime: "onnxruntime" or "openvino".
        level: of ONNX Runtime's optimizer.
    """

    def __init__(self, graph: onnx.GraphProto, runtime: str, level: str = "all") -> None:
        self.runtime = runtime
        self.level = level
        self.nodes = {node.name: node for node in graph.node}
        self.producers = {value: node for node in graph.node for value in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.initializers = {each.name: each for each in graph.initializer}
        self.outputs = {each.name for each in graph.output}

    def of(self, name: str, operator: str) -> str:
        """Return why a float kernel is.

        Args:
            name: the node that it stands for, "" where there is none.
            operator: the runtime's.
        """
        if name not in self.nodes:
            return "the runtime made it itself, or gave it a name that no node has"
        node = self.nodes[name]
        otherwise = f"it meets the rules known here: there is no integer kernel for this {operator}"
        return next(self._missed(node, operator), otherwise)

    def are_missed(self, name: str, operator: str) -> bool:
        """Tell whether a rule is missed; arguments as of `of`."""
        return name not in self.nodes or next(self._missed(self.nodes[name], operator), None) is not None

    def is_pool(self, name: str) -> bool:
        """Tell whether the node `name`, a ReduceMean, is a mean over both dimensions of images."""
        node = self.nodes.get(name)
        axes = self.initializers.get(node.input[1]) if node is not None and len(node.input) > 1 else None
        return axes is not None and sorted(numpy_helper.to_array(axes).tolist()) in ([2, 3], [-2, -1])

    def _missed(self, node: onnx.NodeProto, kernel: str) -> Iterator[str]:
        operator = node.op_type
        if operator in _WITHOUT[self.runtime]:
            yield _WITHOUT[self.runtime][operator]
        if self.runtime == "onnxruntime" and operator not in _WITH_RESULT | _PRODUCTS:
            yield f"{operator} has no integer kernel"
        if self.level in ("disabled", "basic"):
            yield f"graph_optimization={self.level}: pairs become integer kernels from 'extended' on"
        if self.runtime == "openvino":
            yield from self._operands(node, "")
            yield from self._ranges(node)
            return
        result = next(self._result(node), "")
        yield from self._operands(node, result)
        if operator == "MatMul" and kernel in ("Gemm", "FusedGemm"):
            yield "ONNX Runtime joins it with the Add behind it to a Gemm, and that wants an int32 bias"
        yield from self._form(node)
        if operator in _WITH_RESULT and result:
            yield result

    def _operands(self, node: onnx.NodeProto, result: str) -> Iterator[str]:
        """Yield the rule for operands; `result` is what speaks against the result."""
        given = node.input[:2] if node.op_type in _LAYERS else node.input[:1] if node.op_type in _UNARY else node.input
        missing = [value for value in dict.fromkeys(given) if self._dequantize(value) is None]
        if node.op_type in _PRODUCTS and missing and not any(map(self._is_constant, given)):
            yield "both its operands are activations, and they are not quantized"
        more = f", and {result}" if result and node.op_type in _LAYERS and missing == [given[1]] else ""
        roles = {given[0]: "its input, ", given[-1]: "its weight, "} if node.op_type in _LAYERS else {}
        named = [f"{roles.get(value, '')}{self._label(value)}" for value in missing]
        if named:
            others = " and others" if len(named) > 2 else ""
            yield f"no Dequantize stands before {' and '.join(named[:2])}{others}{more}"

    def _form(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yield ONNX Runtime's rules for operands that have a pair."""
        values = [self._dequantize(value) for value in node.input]
        if node.op_type == "Gemm":
            weight = values[1]
            if weight is not None and len(weight.input) < 3:
                yield "the Dequantize of its weight has no zero point, which the integer Gemm wants"
            factors = any(each.name in ("alpha", "beta") and each.f != 1 for each in node.attribute)
            if len(values) > 2 and factors:
                yield "it has a bias, and its alpha or beta is not 1"
        if node.op_type in ("Conv", "Gemm") and values[2:] == [None]:
            yield f"its bias, {self._label(node.input[2])}, is float"
        kinds = {kind for each in values[:2] if each is not None and (kind := self._type(each)) is not None}
        if any(kind.itemsize != 1 for kind in kinds):
            yield f"its operands are of {' and '.join(sorted(map(str, kinds)))}: integer kernels take 8 bits"

    def _result(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yield ONNX Runtime's rules for the result."""
        value, limit = node.output[0], None
        readers = self.readers.get(value, [])
        if value not in self.outputs and len(readers) == 1 and readers[0].op_type in _LIMITS:
            limit, value = readers[0], readers[0].output[0]
            readers = self.readers.get(value, [])
        if value in self.outputs:
            yield "its result is an output of the graph, which is float"
        floats = [each for each in readers if each.op_type != "QuantizeLinear"]
        if floats:
            among = "has no Quantize behind it" if len(floats) == len(readers) else f"has {len(readers)} readers"
            yield f"its result {among}: {floats[0].name} ({floats[0].op_type}) reads it as floats"
        for each in readers:
            found = self._type(each)
            if found is not None and found.itemsize != 1:
                yield f"its result is quantized to {found}: integer kernels give 8 bits"
            zero = self.initializers.get(each.input[2]) if len(each.input) > 2 else None
            if limit is not None and zero is not None and found is not None:
                point, lowest = int(numpy_helper.to_array(zero).flat[0]), np.iinfo(found).min
                if limit.op_type == "Relu" and point != lowest:
                    yield f"the Relu behind it stays: the zero point of its Quantize is {point}, not {lowest}"
                if limit.op_type == "Clip":
                    yield "the Clip behind it stays: its Quantize reaches beyond the limits"

    def _ranges(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yield OpenVINO's rule for operands that have a pair."""
        for value in node.input:
            found = self._dequantize(value)
            if found is not None and not self._is_constant(found.input[1]):
                yield f"the range of {self._label(value)} is found at run time: OpenVINO wants it constant"

    def _dequantize(self, value: str) -> onnx.NodeProto | None:
        """Return the Dequantize that gives `value`, or what `value` is a rearrangement of."""
        node = self.producers.get(value)
        while node is not None and node.op_type in _MOVED:
            node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _is_constant(self, value: str) -> bool:
        if not value or value in self.initializers:
            return True
        node = self.producers.get(value)
        return node is not None and all(map(self._is_constant, node.input))

    def _type(self, node: onnx.NodeProto) -> np.dtype[np.integer[Any]] | None:
        """Return the integers of a Quantize or Dequantize; None where no initializer tells."""
        names = [node.input[0], *node.input[2:]]
        found = next((self.initializers[name] for name in names[::-1] if name in self.initializers), None)
        return None if found is None else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(found.data_type))

    def _label(self, value: str) -> str:
        node = self.producers.get(value)
        return f"{node.name} ({node.op_type})" if node is not None else value
