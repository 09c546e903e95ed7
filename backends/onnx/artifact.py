"""OnnxArtifact: an ONNX model that is called like the model it came from, on ONNX Runtime or on OpenVINO.

Buffers that the model updates are kept by the artifact between calls; it is not safe to call such an artifact from
several threads at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx
import torch

from burnish.backends.onnx.files import save_model
from burnish.backends.onnx.integer_kernels import IntegerKernels, macs_of
from burnish.backends.onnx.integer_reasons import Reasons
from burnish.backends.onnx.model import Model
from burnish.backends.onnx.openvino_session import OpenVinoSession
from burnish.backends.onnx.session import Session
from burnish.backends.onnx.settings import Settings
from burnish.backends.onnx.trace import rows_of
from burnish.compiler.artifact import ArtifactBase
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import BackendError
from burnish.compiler.profile import Profile

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["OnnxArtifact"]

_PROFILED_RUNS = 5


class OnnxArtifact(ArtifactBase):
    """A Program lowered to ONNX.

    Args:
        model: graph, weights and calling convention.
        settings: the backend's options.
        notes: what the user should know of the lowering.
        program: what it came from, for sample inputs and FLOPs; None for a loaded file.
    """

    def __init__(
        self, model: Model, settings: Settings, notes: tuple[str, ...] = (), program: Program | None = None
    ) -> None:
        super().__init__(program.samples if program is not None else None)
        self.model = model
        self.settings = settings
        self._notes = notes
        self._program = program
        self._runtime = OpenVinoSession if settings.runtime == "openvino" else Session
        self._session: Session | OpenVinoSession | None = None
        self._integers: IntegerKernels | None = None
        self._state: dict[str, torch.Tensor] = {}
        self.reset()

    @property
    def binding(self) -> Binding:
        """How it is called."""
        return self.model.convention.binding

    @property
    def session(self) -> Session | OpenVinoSession:
        """The runtime's session, made at the first use."""
        if self._session is None:
            self._session = self._runtime(self.model, self.settings)
        return self._session

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run; same pytree in and out as the model, torch tensors on the CPU.

        Raises:
            InputError: an argument is missing, left over, or of another structure, dtype or static size.
            BackendError: the runtime fails.
        """
        return self._call(self.session, self.model.convention.binding.bind(args, kwargs))

    def _call(self, session: Session | OpenVinoSession, inputs: Mapping[str, Any]) -> Any:
        convention = self.model.convention
        feeds = dict(inputs)
        for buffer, (name, _) in convention.state.items():
            feeds[name] = self._state[buffer]
        found = session.run(feeds)
        for buffer, (_, name) in convention.state.items():
            self._state[buffer] = found[name]
        outputs: dict[str, Any] = {name: found[value] for name, value in convention.outputs.items()}
        for name in convention.numbers:
            outputs[name] = outputs[name].item()
        return convention.binding.result(outputs)

    def reset(self) -> None:
        """Put the buffers that a run updates back to their initial values."""
        self.restore(self.model.initial)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""
        # A run gives new tensors.
        return dict(self._state)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""
        self._state = dict(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.onnx` file, and above 2 GB its weights beside it; see `files`.

        Buffers that calls update are written with their present values.
        """
        save_model(dataclasses.replace(self.model, initial=self._state, runtime=self.settings.runtime), path)

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Return the time of each kernel in one run, mapped back to the model's modules; leaves the state as it was.

        FLOP/s are known where the artifact was emitted in this process.
        """
        args, kwargs = self.arguments(inputs)
        feeds = self.model.convention.binding.bind(args, kwargs)
        session = self._runtime(self.model, self.settings, profiled=True)
        with self.undisturbed():
            for _ in range(_PROFILED_RUNS + 1):
                self._call(session, feeds)
        return Profile(rows_of(session.kernels(self.model.places()), self._flops(feeds)))

    def optimized_node_counts(self) -> Counter[str]:
        """Return how many nodes of each operator the runtime's own optimized graph has: the kernels that run."""
        return self._runtime.node_counts(self.model, self.settings)

    def integer_kernels(self) -> IntegerKernels:
        """Return which kernels of the runtime's own optimized graph compute in integers, and why the others do not.

        Multiply-adds are known where the artifact was emitted in this process.

        Raises:
            BackendError: the runtime refuses the model, or is not ONNX Runtime's CPU provider or OpenVINO.
        """
        if self._integers is None:
            if self.settings.providers != ("CPUExecutionProvider",):
                raise BackendError("integer kernels are counted for ONNX Runtime's CPU provider and for OpenVINO only")
            if self._session is None or not self._session.is_inspected:
                self._session = self._runtime(self.model, self.settings, inspected=True)
            reasons = Reasons(self.model.graph.graph, self.settings.runtime, self.settings.graph_optimization)
            kernels = self._session.kernel_types(self.model.places(), reasons)
            self._integers = IntegerKernels.of(kernels, macs_of(self._program) if self._program is not None else {})
        return self._integers

    def notes(self) -> list[str]:
        """Return what the user should know of the lowering; of a quantized Program, how much became integer kernels."""
        notes = [*self._notes, *self._runtime.NOTES]
        if self._program is None or not self.model.is_quantized():
            return notes
        try:
            return [*notes, *self.integer_kernels().summary()]
        except BackendError as error:
            return [*notes, f"integer kernels are not counted: {error}"]

    def size(self) -> int:
        """Return the bytes of the artifact when saved, to within the length of the metadata."""
        return self.model.bytes()

    def node_count(self) -> int:
        """Return the number of nodes in the graph, those of branches included."""
        return _count(self.model.graph.graph)

    def _flops(self, feeds: Mapping[str, Any]) -> dict[str, int]:
        if self._program is None:
            return {}
        sizes = {name: tuple(each.shape) if isinstance(each, torch.Tensor) else each for name, each in feeds.items()}
        cost = self._program.cost().at(sizes)
        # A size that depends on the data stays symbolic, and its node without a rate.
        return {each.name: each.figures.flops for each in cost.nodes if isinstance(each.figures.flops, int)}


def _count(graph: onnx.GraphProto) -> int:
    nested = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(_count, nested))
