"""Run a Model in ONNX Runtime on torch's memory: inputs are bound by pointer, outputs are handed over by DLPack.

What is copied: an input that is not contiguous, a number (to a tensor of one element), and an output that depends on
no input, because ONNX Runtime would hand out its own constant.

Cases not handled: devices other than the CPU for inputs and outputs (a GPU provider copies them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as bindings

from burnish.backends.onnx.model import DTYPES, Model
from burnish.backends.onnx.settings import Settings
from burnish.compiler.errors import BackendError

__all__ = ["Session"]

_ELEMENT_TYPES = {dtype: number for number, dtype in DTYPES.items()}


class Session:
    """An ONNX Runtime session on a Model.

    Args:
        profile: path prefix of a trace to write.
        optimized: path for ONNX Runtime's own optimized graph.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: Model, settings: Settings, *, profile: str = "", optimized: str = "") -> None:
        options = settings.session(profile=profile)
        if optimized:
            options.optimized_model_filepath = optimized
        # ONNX Runtime refers to the tensors' memory: they must live as long as the session.
        self._weights = [weight.detach() for weight in model.weights.values()]
        try:
            values = [ort.OrtValue(_wrap(weight)) for weight in self._weights]
            if values:
                options.add_external_initializers(list(model.weights), values)
            self.session = ort.InferenceSession(
                model.graph.SerializeToString(), options, providers=list(settings.providers)
            )
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load the graph: {error}") from error
        self._values = values
        self._inputs = {each.name: DTYPES[_element_type(each.type)] for each in self.session.get_inputs()}
        self._outputs = [each.name for each in self.session.get_outputs()]
        self._constant = model.constant_outputs()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Run once.

        Args:
            inputs: a CPU tensor or a number for every graph input.

        Raises:
            BackendError: ONNX Runtime fails; the message is its own.
        """
        binding = self.session.io_binding()
        alive = []
        for name, dtype in self._inputs.items():
            tensor = _ready(inputs[name], dtype)
            alive.append(tensor)
            # An empty tensor has no memory, and ONNX Runtime wants an address.
            memory = tensor if tensor.numel() else torch.empty(1, dtype=dtype)
            alive.append(memory)
            binding.bind_input(name, "cpu", 0, _ELEMENT_TYPES[dtype], list(tensor.shape), memory.data_ptr())
        for name in self._outputs:
            binding.bind_output(name)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {error}") from error
        vector = binding.get_outputs_as_ortvaluevector()
        booleans = set(vector.bool_tensor_indices())
        found = {}
        for index, name in enumerate(self._outputs):
            tensor = torch.utils.dlpack.from_dlpack(vector.dlpack_at(index))
            if index in booleans:
                tensor = tensor.view(torch.bool)
            found[name] = tensor.clone() if name in self._constant else tensor
        return found


def _wrap(tensor: torch.Tensor) -> Any:
    if tensor.dtype is torch.bool:
        return bindings.OrtValue.from_dlpack(tensor.view(torch.uint8).__dlpack__(), True)
    return bindings.OrtValue.from_dlpack(tensor.__dlpack__(), False)


def _ready(value: Any, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=dtype)
    return value.detach().to("cpu").contiguous().resolve_conj().resolve_neg()


def _element_type(text: str) -> int:
    """Return ONNX's number for a type as ONNX Runtime writes it, "tensor(float16)"."""
    number = onnx.TensorProto.DataType.DESCRIPTOR.values_by_name.get(
        text.removeprefix("tensor(").removesuffix(")").upper()
    )
    if number is None or number.number not in DTYPES:
        raise BackendError(f"an input of type {text} cannot be fed")
    return int(number.number)
