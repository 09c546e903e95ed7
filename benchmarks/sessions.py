"""Run an ONNX file in ONNX Runtime or OpenVINO with torch tensors by name, copying no more than their users would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

__all__ = ["Call", "openvino_session", "ort_session"]

Call = Callable[[dict[str, torch.Tensor]], Any]


def ort_session(path: Path, threads: int) -> Call:
    """Run a file in ONNX Runtime; its optimized graph goes beside the file, with the ending .loaded."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".loaded"))
    session = ort.InferenceSession(path, options)
    names = [each.name for each in session.get_inputs()]

    def call(inputs: dict[str, torch.Tensor]) -> Any:
        feeds = dict(zip(names, (value.numpy() for value in inputs.values()), strict=True))
        return list(session.run(None, feeds))

    return call


def openvino_session(model: Any, threads: int, precision: str = "f32") -> Call:
    """Run a file, or a model of OpenVINO's, in OpenVINO; what is not quantized in `precision`, f32 or bf16."""
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()

    def call(inputs: dict[str, torch.Tensor]) -> Any:
        given = [value.numpy() for value in inputs.values()]
        return list(request.infer(given, share_inputs=True, share_outputs=True).values())

    return call
