"""TensorRTArtifact: an engine that is called like the model it came from.

Outputs are on the engine's GPU. Buffers that the model updates are kept there between calls; such an artifact, and any
one engine, is not safe to call from several threads at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.backends.onnx.trace import Kernel, rows_of
from burnish.backends.tensorrt import device, library
from burnish.backends.tensorrt.bundle import SUFFIX as BUNDLE
from burnish.backends.tensorrt.bundle import Bundle
from burnish.backends.tensorrt.engine_file import EngineFile
from burnish.backends.tensorrt.inspection import Inspection
from burnish.compiler.artifact import ArtifactBase
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import BackendError, FileFormatError, InputError
from burnish.compiler.measure import Timing, benchmark
from burnish.compiler.profile import Profile

if TYPE_CHECKING:
    from burnish.backends.tensorrt.execution import Execution
    from burnish.compiler.program import Program

__all__ = ["TensorRTArtifact"]

_PROFILED_RUNS = 5


class TensorRTArtifact(ArtifactBase):
    """An engine on a GPU.

    Args:
        file: the engine, and how it is called.
        bundle: what it was built from; None for a loaded file.
        program: what that came from, for sample inputs, expected outputs and FLOPs; None for a loaded file.
        notes: what the user should know of the build.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        BackendError: there is no GPU, TensorRT does not take the engine, or it computes other types than it says.
    """

    def __init__(
        self,
        file: EngineFile,
        bundle: Bundle | None = None,
        program: Program | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        library.require("running an engine")
        from burnish.backends.tensorrt.execution import Execution

        super().__init__(bundle.samples if bundle is not None else None)
        self.file, self._bundle, self._program, self._notes = file, bundle, program, notes
        self._execution: Execution = Execution(file.plan, file.host_code, file.device)
        for name in (*self._execution.inputs, *self._execution.outputs):
            port = file.ends.inputs.get(name) or file.ends.outputs.get(name)
            if port is None or port.dtype is not self._execution.dtypes[name]:
                wanted = "no such value" if port is None else str(port.dtype)
                raise BackendError(
                    f"the engine's {name!r} is {self._execution.dtypes[name]}, and the graph has {wanted}"
                )
        self._inspection: Inspection | None = None
        self._state: dict[str, torch.Tensor] = {}
        self.reset()

    @staticmethod
    def load(path: str | os.PathLike[str], host_code: bool) -> TensorRTArtifact:
        """Load an `.engine`.

        Args:
            path: the file.
            host_code: the file may bring a runtime of its own, which TensorRT executes.

        Raises:
            FileFormatError: it is truncated, damaged or foreign.
            MissingDependencyError: TensorRT is not installed.
            BackendError: there is no GPU, the engine was built by another TensorRT or on another GPU, or it brings code
                and may not.
        """
        file = EngineFile.load(path)
        if file.host_code and not host_code:
            raise BackendError(
                f"{path}: a version-compatible engine brings a runtime of its own, code that would be executed: where"
                " you trust the file, load it with host_code=True"
            )
        library.require(f"{path}: running an engine")
        file = replace(file, device=file.device % device.count())
        file.check_here(file.device, path)
        try:
            return TensorRTArtifact(file)
        except BackendError as error:
            raise FileFormatError(f"{path}: {error}") from error

    @property
    def binding(self) -> Binding:
        """How it is called."""
        return self.file.convention.binding

    @property
    def inspection(self) -> Inspection:
        """What the engine's layers are."""
        if self._inspection is None:
            self._inspection = Inspection.of(self._execution.layers(), self.file.places)
        return self._inspection

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on the caller's current CUDA stream; same pytree in and out as the model, tensors on the engine's GPU.

        Returns when the work is queued. With no rows, nothing runs.

        Raises:
            InputError: an argument is missing, left over, of another structure or dtype, or its sizes are none that the
                engine was built for.
            BackendError: TensorRT fails.
        """
        feeds = self._feeds(self.binding.bind(args, kwargs))
        convention = self.file.convention
        found = self._empty(feeds)
        if found is None:
            found = self._execution.run(feeds)
        for buffer, (_, name) in convention.state.items():
            self._state[buffer] = found[name]
        outputs: dict[str, Any] = {name: found[value] for name, value in convention.outputs.items()}
        for name in convention.numbers:
            outputs[name] = outputs[name].item()
        return self.binding.result(outputs)

    def reset(self) -> None:
        """Put the buffers that a run updates back to their initial values."""
        self.restore(self.file.initial)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""
        # A run gives new tensors.
        return dict(self._state)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""
        self._state = {name: each.to(device.place(self.file.device)) for name, each in state.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an `.engine`, with the buffers that calls update as they are; or a `.trtbundle`, with them as at first.

        Raises:
            InputError: it cannot be written.
            BackendError: a bundle was asked of a loaded engine, which has no graph.
        """
        if Path(path).suffix != BUNDLE:
            self.file.save(path, self._state)
            return
        if self._bundle is None:
            raise BackendError(
                f"{os.fspath(path)}: a loaded engine has no graph: save the bundle where it was compiled"
            )
        bundle = self._bundle if self._program is None else self._bundle.with_expected(self._program)
        bundle.save(path)

    def benchmark(self, inputs: Inputs | None = None, seconds: float = 2.0) -> Timing:
        """Time calls on `inputs`, by default the sample inputs, until the GPU is done; leaves the state as it was.

        Inputs are brought to the GPU before.
        """
        feeds = self._feeds(self._values(inputs))
        place = device.place(self.file.device)
        held = {name: each.to(place) if isinstance(each, torch.Tensor) else each for name, each in feeds.items()}
        empty = self._empty(held)
        return benchmark(lambda: self._execution.run(held) if empty is None else empty, seconds)

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Return the time of each layer in one run, mapped back to the model's modules; leaves the state as it was.

        TensorRT is slower while it reports layers. FLOP/s are known where the engine was built in this process.
        """
        values = self._values(inputs)
        feeds = self._feeds(values)
        if self._empty(feeds) is not None:
            return Profile([])
        times = self._execution.layer_times(feeds, _PROFILED_RUNS)
        kernels = []
        for name, seconds in times.items():
            layer = self.inspection.named(name)
            kernels.append(Kernel(name, layer.kind, seconds, tuple(self.file.places[each] for each in layer.nodes)))
        return Profile(rows_of(kernels, self._flops(values)))

    def notes(self) -> list[str]:
        """Return what the user should know of the build, and the engine inspector's summary."""
        taken = f"; it takes {', '.join(self.file.profiles)}" if self.file.profiles else ""
        return [f"TensorRT {self.file.tensorrt} on {self.file.gpu}{taken}", *self._notes, *self.inspection.summary()]

    def size(self) -> int:
        """Return the bytes of the artifact when saved, to within its metadata."""
        return self.file.size()

    def node_count(self) -> int:
        """Return the number of layers of the engine."""
        return self._execution.layer_count()

    def _feeds(self, values: Mapping[str, Any]) -> dict[str, Any]:
        state = {self.file.convention.state[buffer][0]: each for buffer, each in self._state.items()}
        return {**values, **state}

    def _empty(self, feeds: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
        """Return outputs without elements where there are no rows to run on; None where the engine must run.

        Raises:
            InputError: the engine was not built for these sizes.
        """
        shapes = {name: _shape(each) for name, each in feeds.items()}
        objection = self._objection(shapes)
        if objection is None:
            return None
        made = self.file.ends.output_shapes(shapes)
        without = any(0 in shape for shape in shapes.values())
        if without and all(shape is not None and not math.prod(shape) for shape in made.values()):
            place = device.place(self.file.device)
            return {
                name: torch.empty(shape or (), dtype=self.file.ends.outputs[name].dtype, device=place)
                for name, shape in made.items()
            }
        raise InputError(objection)

    def _objection(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        for name, (least, most) in self._execution.ranges.items():
            for index, (low, size, high) in enumerate(zip(least, shapes[name], most, strict=True)):
                if not low <= size <= high:
                    symbol = self.file.ends.inputs[name].sizes[index]
                    taken = f" (built with {', '.join(self.file.profiles)})" if self.file.profiles else ""
                    return (
                        f"input {name!r} has size {size} in dimension {index}, {symbol}, and the engine takes {low} to"
                        f" {high}{taken}: build one that takes it, with the option profiles"
                    )
        return None

    def _values(self, inputs: Inputs | None) -> dict[str, Any]:
        args, kwargs = self.arguments(inputs)
        return self.binding.bind(args, kwargs)

    def _flops(self, values: Mapping[str, Any]) -> dict[str, int]:
        if self._program is None:
            return {}
        sizes = {name: tuple(each.shape) if isinstance(each, torch.Tensor) else each for name, each in values.items()}
        cost = self._program.cost().at(sizes)
        return {each.name: each.figures.flops for each in cost.nodes if isinstance(each.figures.flops, int)}


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
