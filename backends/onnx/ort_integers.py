"""Which kernels of ONNX Runtime's optimized graph compute in integers.

Cases not handled: kernels within branches of a conditional; operators that ONNX Runtime makes for other processors than
x86.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

from burnish.backends.onnx.integer_kernels import KernelType
from burnish.backends.onnx.integer_reasons import Reasons
from burnish.backends.onnx.model import Place
from burnish.backends.onnx.trace import find_place

__all__ = ["kernel_types"]

_INTEGER = {
    **dict.fromkeys(("QLinearConv", "ConvInteger"), "convolution"),
    **dict.fromkeys(
        ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"), "matmul"
    ),
    "DynamicQuantizeLSTM": "recurrent",
    "QLinearAdd": "add",
    "QLinearMul": "mul",
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean", "NhwcMaxPool"), "pool"),
    "QLinearSigmoid": "sigmoid",
    "QLinearLeakyRelu": "leaky-relu",
    "QLinearConcat": "concat",
}
# Of floats, or of integers where what they read is.
_OTHER = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"), "convolution"),
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "FusedMatMulActivation", "Einsum"), "matmul"),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), "attention"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent"),
    "Add": "add",
    "Mul": "mul",
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "ReduceMean"), "pool"),
    **dict.fromkeys(("Sigmoid", "QuickGelu"), "sigmoid"),
    "LeakyRelu": "leaky-relu",
    "Concat": "concat",
}
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_BYTES = frozenset({TensorProto.UINT8, TensorProto.INT8})
# With this accuracy MatMulNBits quantizes what it reads to 8 bits.
_EIGHT_BITS = 4


def kernel_types(graph: onnx.GraphProto, places: Mapping[str, Place], reasons: Reasons) -> Iterator[KernelType]:
    """Yield the kernels of ONNX Runtime's optimized graph that are, or could be, integer ones.

    Args:
        graph: the optimized graph.
        places: where each node of the graph before comes from.
        reasons: of the graph before.
    """
    types = _types(graph)
    for node in graph.node:
        kind, integer = _kind(node, types)
        if kind is not None:
            place = find_place(node.name, node.op_type, places)
            if node.op_type != "ReduceMean" or reasons.is_pool(place.name):
                reason = "" if integer else reasons.of(place.name, node.op_type)
                yield KernelType(node.name, node.op_type, kind, integer, place.module, place.node, reason)


def _kind(node: onnx.NodeProto, types: Mapping[str, int]) -> tuple[str | None, bool]:
    """Return the kind of a kernel, None for others, and whether it computes in integers."""
    operator = node.op_type
    if operator in _INTEGER:
        return _INTEGER[operator], True
    if operator == "MatMulNBits":
        return "matmul", any(each.name == "accuracy_level" and each.i == _EIGHT_BITS for each in node.attribute)
    if operator not in _OTHER:
        return None, False
    element = types.get(node.input[0], TensorProto.FLOAT)
    # Others are the arithmetic of sizes.
    return (_OTHER[operator] if element in _FLOATS | _BYTES else None), element in _BYTES


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the element types of values; what ONNX Runtime does not tell is taken from the operators."""
    known = {each.name: each.data_type for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            known[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        quantized = node.op_type == "QuantizeLinear" or node.op_type.startswith(("QLinear", "Nhwc"))
        rearranged = node.op_type in ("Transpose", "Reshape", "MaxPool", "Slice", "Squeeze", "Unsqueeze")
        for value in node.output if quantized or rearranged else ():
            known.setdefault(value, known.get(node.input[0], TensorProto.FLOAT) if rearranged else TensorProto.UINT8)
    return known
