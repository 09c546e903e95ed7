"""Run a Model in ONNX Runtime on torch's memory: inputs are bound by pointer, outputs are handed over by DLPack.

What is copied: an input that is not contiguous, a number (to a tensor of one element), and an output that depends on
no input, because ONNX Runtime would hand out its own constant.

Cases not handled: devices other than the CPU for inputs and outputs (a GPU provider copies them).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import onnx
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as bindings

from burnish.backends.onnx.integer_kernels import KernelType
from burnish.backends.onnx.integer_reasons import Reasons
from burnish.backends.onnx.model import DTYPES, INLINE_BYTES, Model, Place
from burnish.backends.onnx.ort_integers import kernel_types
from burnish.backends.onnx.settings import Settings
from burnish.backends.onnx.trace import Kernel, kernels_of_trace
from burnish.compiler.errors import BackendError

__all__ = ["Session", "ready"]

_ELEMENT_TYPES = {dtype: number for number, dtype in DTYPES.items()}


class Session:
    """An ONNX Runtime session on a Model.

    Args:
        profiled: keep the time of each kernel, for `kernels`.
        inspected: keep ONNX Runtime's own optimized graph, without its weights, for `kernel_types`.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """

    NOTES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Model, settings: Settings, *, profiled: bool = False, inspected: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory() if profiled else None
        options = settings.session(profile=str(Path(self._folder.name) / "trace") if self._folder else "")
        # ONNX Runtime refers to the tensors' memory: they must live as long as the session.
        self._weights = [weight.detach() for weight in model.weights.values()]
        try:
            values = [ort.OrtValue(_wrap(weight)) for weight in self._weights]
            if values:
                options.add_external_initializers(list(model.weights), values)
            self.session, self.optimized = _open(model, settings, options, inspected)
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load the graph: {error}{_remedy(model)}") from error
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
            tensor = ready(inputs[name], dtype)
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

    def kernels(self, places: Mapping[str, Place]) -> list[Kernel]:
        """Return the kernels of the runs so far of a profiled session, and end it.

        Args:
            places: where each graph node comes from.
        """
        assert self._folder is not None, "the session is not profiled"
        with self._folder:
            text = Path(self.session.end_profiling()).read_text()
        return list(kernels_of_trace(text, places))

    @property
    def is_inspected(self) -> bool:
        """`kernel_types` can tell."""
        return self.optimized is not None

    def kernel_types(self, places: Mapping[str, Place], reasons: Reasons) -> list[KernelType]:
        """Return the kernels that are, or could be, integer ones, of an inspected session.

        Args:
            places: where each graph node comes from.
            reasons: of the graph.
        """
        assert self.optimized is not None, "the session is not inspected"
        return list(kernel_types(self.optimized, places, reasons))

    @classmethod
    def node_counts(cls, model: Model, settings: Settings) -> Counter[str]:
        """Return how many nodes of each operator ONNX Runtime's own optimized graph has.

        Raises:
            BackendError: ONNX Runtime refuses the model.
        """
        graph = cls(model, settings, inspected=True).optimized
        assert graph is not None
        return Counter(node.op_type for node in graph.node)


def ready(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return an input as a contiguous CPU tensor; a number as one of `dtype`."""
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=dtype)
    return value.detach().to("cpu").contiguous().resolve_conj().resolve_neg()


def _open(
    model: Model, settings: Settings, options: ort.SessionOptions, inspected: bool
) -> tuple[ort.InferenceSession, onnx.GraphProto | None]:
    graph, providers = model.graph.SerializeToString(), list(settings.providers)
    left_out = _left_out(model.graph.graph, settings)
    if not inspected:
        return ort.InferenceSession(graph, options, providers=providers, disabled_optimizers=left_out), None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        # Beside the graph: within it, they would have to be read too, and 2 GB is the most that it holds.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        size = "session.optimized_model_external_initializers_min_size_in_bytes"
        options.add_session_config_entry(size, str(INLINE_BYTES))
        session = ort.InferenceSession(graph, options, providers=providers, disabled_optimizers=left_out)
        return session, onnx.load(path, load_external_data=False).graph


def _left_out(graph: onnx.GraphProto, settings: Settings) -> list[str]:
    """Return the optimizers of ONNX Runtime that would do harm."""
    found = []
    if _keeps_layers(graph):
        # It completes layers between pairs, float biases for one, but also quantizes those that are to stay float.
        found.append("WeightBiasQuantization")
    if settings.providers == ("CPUExecutionProvider",) and _has_type(graph, onnx.TensorProto.FLOAT16):
        # It swaps a Transpose and a Cast into a graph on which a later one crashes (microsoft/onnxruntime#28392).
        found.append("MatmulTransposeFusion")
    return found


def _has_type(graph: onnx.GraphProto, dtype: int) -> bool:
    """Tell whether inputs or constants have an element type, or casts give it."""
    casts = (each.i for node in graph.node if node.op_type == "Cast" for each in node.attribute if each.name == "to")
    inputs = (each.type.tensor_type.elem_type for each in graph.input)
    return dtype in {*casts, *inputs, *(each.data_type for each in graph.initializer)}


def _keeps_layers(graph: onnx.GraphProto) -> bool:
    """Tell whether a layer with a float weight reads what a Dequantize gives."""
    quantized = {value for node in graph.node if node.op_type == "DequantizeLinear" for value in node.output}
    return any(
        node.op_type in ("Conv", "Gemm") and node.input[0] in quantized and node.input[1] not in quantized
        for node in graph.node
    )


def _remedy(model: Model) -> str:
    """Say what to do where the graph has bfloat16, which ONNX Runtime's words do not name."""
    if not _has_type(model.graph.graph, onnx.TensorProto.BFLOAT16):
        return ""
    return (
        "; it has few kernels for bfloat16 on the CPU: take runtime=openvino (of a file,"
        ' burnish.load(path, runtime="openvino")), the torchscript backend, or precision{dtype=fp16}; compile with'
        " verify=0 only writes the file"
    )


def _wrap(tensor: torch.Tensor) -> Any:
    if tensor.dtype is torch.bool:
        return bindings.OrtValue.from_dlpack(tensor.view(torch.uint8).__dlpack__(), True)
    return bindings.OrtValue.from_dlpack(tensor.__dlpack__(), False)


def _element_type(text: str) -> int:
    """Return ONNX's number for a type as ONNX Runtime writes it, "tensor(float16)"."""
    number = onnx.TensorProto.DataType.DESCRIPTOR.values_by_name.get(
        text.removeprefix("tensor(").removesuffix(")").upper()
    )
    if number is None or number.number not in DTYPES:
        raise BackendError(f"an input of type {text} cannot be fed")
    return int(number.number)
