"""Run a Model in OpenVINO on torch's memory: weights and inputs are read where they are, outputs are handed over.

What is copied: an input that is not contiguous, and a number (to a tensor of one element). Every run writes to memory
that no result of an earlier run uses any more, so results outlive later runs. A run in another thread has an inference
request of its own.

Cases not handled: devices other than the CPU. OpenVINO computes 64-bit integers in 32 bits, and float64 in float32.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from burnish.backends.onnx.integer_kernels import KernelType
from burnish.backends.onnx.integer_reasons import Reasons
from burnish.backends.onnx.model import Model, Place
from burnish.backends.onnx.openvino_graph import graph_for_openvino
from burnish.backends.onnx.openvino_integers import kernel_types
from burnish.backends.onnx.openvino_profile import count_kernels, kernels_of
from burnish.backends.onnx.session import ready
from burnish.backends.onnx.settings import Settings
from burnish.backends.onnx.trace import Kernel
from burnish.compiler.errors import BackendError, MissingDependencyError

__all__ = ["OpenVinoSession", "import_openvino"]

_DEVICE = "CPU"
_TYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
    "boolean": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_INT32 = torch.iinfo(torch.int32)
_IMPORTING = threading.Lock()


class OpenVinoSession:
    """A Model compiled by OpenVINO; it may be called from several threads.

    Args:
        profiled: keep the time of each kernel, for `kernels`.
        inspected: as for ONNX Runtime; OpenVINO can always tell.

    Raises:
        BackendError: OpenVINO refuses the model or a property; the message is its own.
        MissingDependencyError: OpenVINO cannot be imported.
    """

    NOTES: ClassVar[tuple[str, ...]] = ("OpenVINO computes 64-bit integers in 32 bits, and float64 in float32",)

    def __init__(self, model: Model, settings: Settings, *, profiled: bool = False, inspected: bool = False) -> None:
        openvino, core = import_openvino()
        self._openvino = openvino
        # OpenVINO refers to the tensors' memory: they must live as long as the session.
        self._weights = {name: weight.detach() for name, weight in model.weights.items()}
        graph = graph_for_openvino(model.graph, self._weights)
        properties = {**_properties(settings), "PERF_COUNT": profiled}
        try:
            self.compiled = core.compile_model(core.read_model(graph.SerializeToString()), _DEVICE, properties)
        except Exception as error:
            raise BackendError(f"OpenVINO cannot load the graph: {error}") from error
        self._inputs = [_name_of(port, model) for port in self.compiled.inputs]
        self._outputs = [_Output.of(port) for port in self.compiled.outputs]
        self._graph = model.graph.graph
        self._names = [each.name for each in self._graph.output]
        # Requests that no run uses; list.pop and list.append are atomic.
        self._idle: list[Any] = []
        self._infos: list[list[Any]] | None = [] if profiled else None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Run once.

        Args:
            inputs: a CPU tensor or a number for every graph input.

        Raises:
            BackendError: OpenVINO fails; the message is its own. Or an int64 input does not fit 32 bits.
        """
        tensors = [_in_range(ready(inputs[name], dtype), name) for name, dtype in self._inputs]
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            for index, tensor in enumerate(tensors):
                request.set_input_tensor(index, self._shared(tensor))
            memories = [output.memory(self._openvino) for output in self._outputs]
            for index, memory in enumerate(memories):
                request.set_output_tensor(index, memory)
            request.infer(share_outputs=True)
            found = [output.handed_over(memory) for output, memory in zip(self._outputs, memories, strict=True)]
            if self._infos is not None:
                self._infos.append(request.get_profiling_info())
        except Exception as error:
            raise BackendError(f"OpenVINO failed: {error}") from error
        self._idle.append(request)
        # numpy has no bfloat16: OpenVINO hands it over as another type of two bytes.
        return {
            name: tensor.view(output.dtype)
            for name, tensor, output in zip(self._names, found, self._outputs, strict=True)
        }

    def kernels(self, places: Mapping[str, Place]) -> list[Kernel]:
        """Return the kernels of the runs so far of a profiled session, the first run left out.

        Args:
            places: where each graph node comes from.
        """
        assert self._infos is not None, "the session is not profiled"
        # The first run allocates and warms up.
        return kernels_of(self.compiled, self._infos[1:] or self._infos, self._graph, places)

    @property
    def is_inspected(self) -> bool:
        """`kernel_types` can tell."""
        return True

    def kernel_types(self, places: Mapping[str, Place], reasons: Reasons) -> list[KernelType]:
        """Return the kernels that are, or could be, integer ones.

        Args:
            places: where each graph node comes from.
            reasons: of the graph.
        """
        return list(kernel_types(self.compiled, self._graph, places, reasons))

    @classmethod
    def node_counts(cls, model: Model, settings: Settings) -> Counter[str]:
        """Return how many kernels of each kind the compiled graph has.

        Raises:
            BackendError: OpenVINO refuses the model.
        """
        return count_kernels(cls(model, settings).compiled)

    def _shared(self, tensor: torch.Tensor) -> Any:
        array = tensor.reshape(-1).view(torch.uint8).numpy()
        kind = getattr(self._openvino.Type, _NAMES[tensor.dtype])
        return self._openvino.Tensor(array, self._openvino.Shape(list(tensor.shape)), kind)


@dataclass(frozen=True, slots=True)
class _Output:
    """An output, and memory for it that no result uses. Fresh pages cost a run with large results a tenth of its time.

    Attributes:
        element_type: of OpenVINO.
        dtype: of torch.
        sizes: what new memory starts with; unknown ones are 0, and OpenVINO resizes the memory.
        idle: memory to write to; list.pop and list.append are atomic.
    """

    element_type: Any
    dtype: torch.dtype
    sizes: list[int]
    idle: list[Any] = field(default_factory=list)

    @staticmethod
    def of(port: Any) -> _Output:
        shape = port.partial_shape
        sizes = [0] if shape.rank.is_dynamic else [0 if each.is_dynamic else each.get_length() for each in shape]
        return _Output(port.element_type, _dtype_of(port), sizes)

    def memory(self, openvino: Any) -> Any:
        """Return an openvino.Tensor for the next run."""
        try:
            return self.idle.pop()
        except IndexError:
            return openvino.Tensor(self.element_type, openvino.Shape(self.sizes))

    def handed_over(self, memory: Any) -> torch.Tensor:
        """Return a tensor on `memory`, which is idle again once no tensor refers to it."""
        array = memory.data
        weakref.finalize(array, self.idle.append, memory).atexit = False
        return torch.from_numpy(array)


def import_openvino() -> tuple[Any, Any]:
    """Return OpenVINO's module and its core, without its telemetry; threads may ask at once.

    Raises:
        MissingDependencyError: OpenVINO cannot be imported.
    """
    with _IMPORTING:
        return _imported()


@functools.cache
def _imported() -> tuple[Any, Any]:
    # The package reports its import to its makers unless the package that does so cannot be imported.
    telemetry = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenVINO cannot be imported: {error}; pip install 'burnish[openvino]'"
        ) from error
    finally:
        del sys.modules["openvino_telemetry"]
        if telemetry is not None:
            sys.modules["openvino_telemetry"] = telemetry
    return openvino, openvino.Core()


def _in_range(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return `tensor`. OpenVINO would cut 64 bits to 32 without a word."""
    if tensor.dtype is torch.int64 and tensor.numel():
        least, most = (each.item() for each in tensor.aminmax())
        if least < _INT32.min or most > _INT32.max:
            raise BackendError(f"input {name!r} has integers beyond 32 bits, in which OpenVINO computes")
    return tensor


def _properties(settings: Settings) -> dict[str, Any]:
    # By itself OpenVINO computes in bfloat16 where the processor can, and quantizes what meets int8 weights: errors
    # of 1e-2 either way.
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if settings.threads:
        properties["INFERENCE_NUM_THREADS"] = settings.threads
    return properties | dict(settings.session_options)


def _name_of(port: Any, model: Model) -> tuple[str, torch.dtype]:
    (name,) = port.get_names() & {each.name for each in model.graph.graph.input}
    return name, _dtype_of(port)


def _dtype_of(port: Any) -> torch.dtype:
    name = port.element_type.get_type_name()
    if name not in _TYPES:
        raise BackendError(f"an input or output of OpenVINO's type {name} cannot be fed")
    return _TYPES[name]
