"""What others make of a model in int8, each at its best setting: from an exported file to a quantized one.

ONNX Runtime's own tools (static QDQ after their pre-processing, and dynamic), and NNCF with OpenVINO. Convolutional
networks are quantized whole, of transformers the products with constant weights: what is fastest and most accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

__all__ = ["Feeds", "nncf_openvino", "ort_dynamic", "ort_static"]

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
