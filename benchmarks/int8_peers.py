"""What others make of a model in int8, each at its best setting: from an exported file to a quantized one.

ONNX Runtime's own tools (static QDQ after their pre-processing, and dynamic), NNCF with OpenVINO, and torchao's PT2E, a
module with pairs. Convolutional networks are quantized whole, of transformers the products with constant weights: what
is fastest and most accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

__all__ = ["Feeds", "nncf_openvino", "ort_dynamic", "ort_static", "torchao_pt2e"]

Feeds = Sequence[dict[str, torch.Tensor]]
"""Calibration data: inputs by name, in the order of the file's inputs."""

_CONSTANT_ONLY = {"MatMulConstBOnly": True}


def ort_static(path: Path, data: Feeds, convolutional: bool) -> Path:
    """Return the file of quantize_static: uint8 activations, int8 weights by channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, result = path.with_name("prepared.onnx"), path.with_name("ort_static.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        prepared,
        result,
        _reader(prepared, data),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=None if convolutional else ["MatMul", "Gemm"],
        extra_options={} if convolutional else _CONSTANT_ONLY,
    )
    return result


def ort_dynamic(path: Path) -> Path:
    """Return the file that onnxruntime.quantization.quantize_dynamic makes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, result = path.with_name("prepared.onnx"), path.with_name("ort_dynamic.onnx")
    if not prepared.exists():
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        prepared,
        result,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options=_CONSTANT_ONLY,
    )
    return result


def nncf_openvino(path: Path, data: Feeds, convolutional: bool) -> Any:
    """Return the model that nncf.quantize makes of a file."""
    import logging

    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    items = [[value.numpy() for value in each.values()] for each in data]
    kind = None if convolutional else nncf.ModelType.TRANSFORMER
    return nncf.quantize(openvino.Core().read_model(path), nncf.Dataset(items), subset_size=len(items), model_type=kind)


def torchao_pt2e(model: torch.nn.Module, inputs: Any, dynamic_shapes: Any, data: Feeds) -> torch.nn.Module:
    """Return what torchao's PT2E makes of a model for x86: pairs that eager computes one by one."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    args, kwargs = (tuple(inputs), {}) if not isinstance(inputs, dict) else ((), inputs)
    if dynamic_shapes is None:
        sizes = {0: torch.export.Dim.AUTO}
        dynamic_shapes = [sizes for _ in args] or dict.fromkeys(kwargs, sizes)
    exported = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes).module()
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for each in data:
            prepared(*each.values()) if args else prepared(**each)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted


def _reader(path: Path, data: Feeds) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    names = [each.name for each in onnx.load(path, load_external_data=False).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.items = iter(data)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            found = next(self.items, None)
            return None if found is None else dict(zip(names, (v.numpy() for v in found.values()), strict=True))

    return Reader()
