"""What the exporter calls in place of torch's own translations: burnish's operators, and attention without NaN checks.

A translation is a function of a Builder and the operator's arguments: values of the graph for tensors, and literals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from burnish.backends.onnx.translations import activations, attention, layers, norms, quantized, rotary, rows
from burnish.backends.onnx.translations.builder import Builder
from burnish.compiler.operators import find_operator

__all__ = ["TRANSLATED", "table"]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten.conv1d": layers.convolution,
    "aten.conv2d": layers.convolution,
    "aten.conv3d": layers.convolution,
    "aten.gelu": activations.gelu,
    "aten.hardsigmoid": activations.hardsigmoid,
    "aten.hardswish": activations.hardswish,
    "aten.index_copy": rows.index_copy,
    "aten.index_select": rows.index_select,
    "aten.leaky_relu": activations.leaky_relu,
    "aten.linear": layers.linear,
    "aten.mean.dim": layers.mean,
    "aten.mish": activations.mish,
    "aten.rms_norm": norms.rms_norm,
    "aten.scaled_dot_product_attention": attention.scaled_dot_product_attention,
    "aten.silu": activations.silu,
    "aten.softplus": activations.softplus,
    "aten.sym_numel": layers.element_count,
    "burnish.conv_act": layers.conv_act,
    "burnish.embedding_layer_norm": norms.embedding_layer_norm,
    "burnish.linear_act": layers.linear_act,
    "burnish.multi_head_attention": attention.multi_head_attention,
    "burnish.quick_gelu": activations.quick_gelu,
    "burnish.rotary_embedding": rotary.rotary_embedding,
    "burnish.self_attention": attention.self_attention,
    "burnish.skip_layer_norm": norms.skip_layer_norm,
    "burnish.skip_rms_norm": norms.skip_rms_norm,
    "quantized_decomposed.choose_qparams.tensor": quantized.choose_range,
    "quantized_decomposed.dequantize_per_channel": quantized.dequantize_per_channel,
    "quantized_decomposed.dequantize_per_tensor": quantized.dequantize_per_tensor,
    "quantized_decomposed.dequantize_per_tensor.tensor": quantized.dequantize_by_tensor,
    "quantized_decomposed.quantize_per_tensor": quantized.quantize_per_tensor,
    "quantized_decomposed.quantize_per_tensor.tensor": quantized.quantize_by_tensor,
}
TRANSLATED = frozenset(find_operator(name) for name in _FUNCTIONS)
"""The operators that the exporter need not know, nor anybody decompose."""


def table(opset: int, standard: bool, constants: Mapping[str, torch.Tensor]) -> dict[Any, Callable[..., Any]]:
    """Return the `custom_translation_table` for torch.onnx.export.

    Args:
        opset: version of the ONNX operator set.
        standard: no operators of ONNX Runtime's own.
        constants: the Program's constants by the names of their graph inputs.
    """
    builder = Builder(opset, standard, constants)
    return {find_operator(name): functools.partial(function, builder) for name, function in _FUNCTIONS.items()}
