"""Run an engine on torch's memory: tensors are bound by address, on the caller's current CUDA stream.

What is copied: an input that is not on the engine's GPU, not contiguous, or not aligned; a number. Outputs whose sizes
depend on the data get their memory from an output allocator. Imported only where `library.reason` has nothing to say.

Not handled: calls from several threads at once; more than one optimization profile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorrt as trt
import torch

from burnish.backends.tensorrt import device
from burnish.backends.tensorrt.building import Log
from burnish.compiler.errors import BackendError

__all__ = ["Execution"]

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
# Of memory that is given to TensorRT (NvInferRuntime.h, setTensorAddress).
_ALIGNMENT = 256


class Execution:
    """An engine that is ready to run on one GPU.

    Args:
        plan: the serialized engine.
        host_code: the plan brings a runtime of its own, as version-compatible ones do.
        index: of the GPU.

    Raises:
        BackendError: TensorRT does not take the plan, or there is no memory for it.
    """

    def __init__(self, plan: bytes, host_code: bool, index: int) -> None:
        self.index = index
        self._log = Log()
        with device.use(index):
            self._runtime = trt.Runtime(self._log)
            self._runtime.engine_host_code_allowed = host_code
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise BackendError(f"TensorRT {trt.__version__} does not take the engine: {self._log.text()}")
            context = engine.create_execution_context()
            if context is None:
                raise BackendError(f"TensorRT cannot run the engine: {self._log.text()}")
        self._engine, self._context = engine, context
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.dtypes = {name: _dtype(engine, name) for name in names}
        # What becomes a size is read on the host.
        self._on_host = {name: engine.get_tensor_location(name) == trt.TensorLocation.HOST for name in names}
        self.ranges = {name: self._range(name) for name in self.inputs}
        self._allocators: dict[str, _Allocator] = {}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Run once; returns when the work is queued on the caller's current stream.

        Args:
            inputs: a tensor or a number for every input, of shapes within `ranges`.

        Raises:
            BackendError: TensorRT fails; the message is its own.
        """
        with device.use(self.index):
            return self._run(inputs)

    def layer_times(self, inputs: Mapping[str, Any], runs: int) -> dict[str, float]:
        """Return the seconds per run of every layer by name, in order."""
        profiler, kept = _Profiler(), self._context
        with device.use(self.index):
            context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(f"TensorRT cannot run the engine: {self._log.text()}")
        # Of its own: a context keeps its profiler, which slows every run.
        self._context = context
        try:
            self.run(inputs)
            device.synchronize(self.index)
            context.profiler = profiler
            for _ in range(runs):
                self.run(inputs)
                device.synchronize(self.index)
        finally:
            self._context = kept
        return {name: total / runs * 1e-3 for name, total in profiler.milliseconds.items()}

    def layers(self) -> str:
        """Return what the engine inspector tells of all layers, as JSON."""
        return self._engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)

    def layer_count(self) -> int:
        """Return the number of layers of the engine."""
        return self._engine.num_layers

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        self._log.errors.clear()
        # Memory that the context refers to; it is used again in the order of the stream.
        alive = [self._bind_input(name, inputs[name]) for name in self.inputs]
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise BackendError(f"TensorRT cannot tell shapes: {error}: {self._log.text()}") from error
        if missing:
            raise BackendError(f"TensorRT cannot tell shapes, for it lacks {', '.join(missing)}: {self._log.text()}")
        results = {name: self._bind_output(name, alive) for name in self.outputs}
        done = self._context.execute_async_v3(device.stream(self.index))
        refused = [each.error for each in results.values() if isinstance(each, _Allocator) and each.error]
        if not done or refused:
            raise BackendError(f"TensorRT failed: {'; '.join(map(str, refused)) or self._log.text()}")
        if any(self._on_host[name] for name in self.outputs):
            device.synchronize(self.index)
        return {name: each.tensor() if isinstance(each, _Allocator) else each for name, each in results.items()}

    def _place(self, name: str) -> torch.device:
        return torch.device("cpu") if self._on_host[name] else device.place(self.index)

    def _range(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = tuple(self._engine.get_tensor_shape(name))
        if all(size >= 0 for size in shape):
            return shape, shape
        shapes = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(shapes[0]), tuple(shapes[-1])

    def _bind_input(self, name: str, value: Any) -> torch.Tensor:
        tensor = self._ready(name, value)
        if not self._context.set_input_shape(name, tuple(tensor.shape)):
            raise BackendError(f"TensorRT refuses the shape {list(tensor.shape)} of {name!r}: {self._log.text()}")
        self._context.set_tensor_address(name, tensor.data_ptr())
        return tensor

    def _ready(self, name: str, value: Any) -> torch.Tensor:
        place, dtype = self._place(name), self.dtypes[name]
        if not isinstance(value, torch.Tensor):
            return torch.tensor(value, dtype=dtype, device=place)
        tensor = value.detach().to(place).contiguous().resolve_conj().resolve_neg()
        aligned = tensor.data_ptr() % _ALIGNMENT == 0 or place.type == "cpu"
        return tensor if aligned else tensor.clone()

    def _bind_output(self, name: str, alive: list[torch.Tensor]) -> torch.Tensor | _Allocator:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            # The context refers to it from now on.
            allocator = self._allocators.setdefault(name, _Allocator(self.dtypes[name], self._place(name)))
            allocator.clear()
            self._context.set_output_allocator(name, allocator)
            return allocator
        tensor = torch.empty(shape, dtype=self.dtypes[name], device=self._place(name))
        # An empty tensor has no memory, and TensorRT wants an address.
        memory = tensor if tensor.numel() else torch.empty(1, dtype=self.dtypes[name], device=self._place(name))
        alive.append(memory)
        self._context.set_tensor_address(name, memory.data_ptr())
        return tensor


class _Allocator(trt.IOutputAllocator):
    """Memory for one output, new for every run, of as many bytes as TensorRT finds that it needs."""

    def __init__(self, dtype: torch.dtype, place: torch.device) -> None:
        trt.IOutputAllocator.__init__(self)
        self.dtype, self.place = dtype, place
        self.clear()

    def clear(self) -> None:
        """Forget the run before; its result has the memory."""
        self.memory: torch.Tensor | None = None
        self.shape: tuple[int, ...] = ()
        self.error: Exception | None = None

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
        """Return the address of `size` bytes, 0 where there are none; called by TensorRT."""
        try:
            whole = torch.empty(size + alignment, dtype=torch.uint8, device=self.place)
        except RuntimeError as error:  # an exception does not pass through TensorRT
            self.error = error
            return 0
        start = -whole.data_ptr() % alignment
        self.memory = whole[start : start + size]
        return self.memory.data_ptr()

    def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:
        """Keep the shape; called by TensorRT."""
        self.shape = tuple(shape)

    def tensor(self) -> torch.Tensor:
        """Return the output."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if self.memory is None or not size:
            return torch.empty(self.shape, dtype=self.dtype, device=self.place)
        return self.memory[:size].view(self.dtype).reshape(self.shape)


class _Profiler(trt.IProfiler):
    """Adds up what TensorRT reports of every layer, in milliseconds."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.milliseconds: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Add a time; called by TensorRT."""
        self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms


def _dtype(engine: trt.ICudaEngine, name: str) -> torch.dtype:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise BackendError(f"{name!r} is of TensorRT's type {kind}, which PyTorch does not share")
    return _DTYPES[kind]
