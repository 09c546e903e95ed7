"""Which kernels of OpenVINO's compiled model compute in integers: those whose implementation says I8.

Cases not handled: kernels within branches of a conditional.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from burnish.backends.onnx.integer_kernels import KernelType
from burnish.backends.onnx.integer_reasons import Reasons
from burnish.backends.onnx.model import Place
from burnish.backends.onnx.openvino_profile import names_of, origins_of, own_places, text_of

__all__ = ["kernel_types"]

# By kind of kernel; those that stand for several operators have the kinds of these.
_KINDS = {
    **dict.fromkeys(("Convolution", "GroupConvolution", "Deconvolution"), "convolution"),
    **dict.fromkeys(("FullyConnected", "MatMul"), "matmul"),
    "ScaledDotProductAttention": "attention",
    **dict.fromkeys(("RNNSeq", "RNNCell"), "recurrent"),
    "Pooling": "pool",
    "Concatenation": "concat",
}
_SEVERAL = ("Eltwise", "Reduce", "Subgraph")
_OPERATORS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), "convolution"),
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), "matmul"),
    "Attention": "attention",
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent"),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean"), "pool"),
    "Concat": "concat",
    "Add": "add",
    "Mul": "mul",
    "Sigmoid": "sigmoid",
    "LeakyRelu": "leaky-relu",
}
_PRODUCTS = ("matmul", "attention")
_PRECISIONS = ("f32", "f16", "bf16", "u8", "i8")


def kernel_types(
    compiled: Any, graph: onnx.GraphProto, places: Mapping[str, Place], reasons: Reasons
) -> Iterator[KernelType]:
    """Yield the kernels of a compiled model that are, or could be, integer ones.

    Args:
        compiled: the compiled model.
        graph: what was compiled.
        places: where each of its nodes comes from.
        reasons: of the graph.
    """
    names, origins = names_of(graph, places), origins_of(compiled, graph, places)
    for node in compiled.get_runtime_model().get_ordered_ops():
        name, layer = node.get_friendly_name(), text_of(node, "layerType")
        # Others are the arithmetic of sizes.
        if text_of(node, "runtimePrecision") not in _PRECISIONS:
            continue
        if layer in _KINDS:
            work = [_layer(_KINDS[layer], origins[name], places)]
        elif layer in _SEVERAL:
            work = _parts(own_places(node, names, places), reasons)
        else:
            continue
        integer = text_of(node, "primitiveType").lower().endswith(("_i8", "_u8"))
        for kind, place in work:
            # Of an attention in one kernel only the product that all operands are quantized for is an integer one.
            whole = integer and not (layer == "Subgraph" and kind == "matmul" and reasons.are_missed(place.name, layer))
            reason = "" if whole else reasons.of(place.name, layer)
            yield KernelType(name, layer, kind, whole, place.module, place.node, reason)


def _layer(kind: str, origins: tuple[Place, ...], places: Mapping[str, Place]) -> tuple[str, Place]:
    """Return what a kernel of one kind does, and for which node."""
    # What OpenVINO gave a name of its own stands for a node beside those that it comes from.
    beside = [each for each in places.values() if origins and each.node == origins[0].node]
    for place in (*origins, *beside):
        if _OPERATORS.get(place.operator) in (kind, "attention"):
            return _OPERATORS[place.operator], place
    return kind, next(iter(origins), Place("", "", ""))


def _parts(own: tuple[Place, ...], reasons: Reasons) -> list[tuple[str, Place]]:
    """Return what a kernel of several operators does: all its products, or one other thing."""
    kinds = [
        (_OPERATORS[place.operator], place)
        for place in own
        if place.operator in _OPERATORS and (place.operator != "ReduceMean" or reasons.is_pool(place.name))
    ]
    products = {place.node: (kind, place) for kind, place in kinds if kind in _PRODUCTS}
    return list(products.values()) or kinds[:1]
