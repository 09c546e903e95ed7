"""BundleArtifact: what stands for an engine where none can be built; ONNX Runtime runs the same graph.

It is there to be saved as a `.trtbundle`, and to be compared with the model before that. How fast it is says nothing of
TensorRT, so it is not timed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from burnish.backends.onnx.artifact import OnnxArtifact
from burnish.backends.onnx.settings import Settings as OnnxSettings
from burnish.backends.tensorrt import library
from burnish.backends.tensorrt.bundle import SUFFIX, Bundle
from burnish.compiler.artifact import ArtifactBase
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import BackendError, MissingDependencyError
from burnish.compiler.measure import Timing
from burnish.compiler.profile import Profile

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["BundleArtifact"]


class BundleArtifact(ArtifactBase):
    """A bundle that can be called.

    Args:
        bundle: graph, profiles, samples.
        program: what it came from; None for a loaded file.
        notes: what the user should know of the lowering.
    """

    is_timed: ClassVar[bool] = False

    def __init__(self, bundle: Bundle, program: Program | None = None, notes: tuple[str, ...] = ()) -> None:
        super().__init__(bundle.samples)
        self.bundle, self._program, self._notes = bundle, program, notes
        self._runnable = OnnxArtifact(bundle.model, OnnxSettings.parse({"dialect": "tensorrt"}))

    @property
    def binding(self) -> Binding:
        """How it is called."""
        return self._runnable.binding

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run in ONNX Runtime; same pytree in and out as the model, torch tensors on the CPU.

        Raises:
            InputError: an argument is missing, left over, or of another structure, dtype or static size.
            BackendError: ONNX Runtime fails.
        """
        return self._runnable(*args, **kwargs)

    def reset(self) -> None:
        """Put the buffers that a run updates back to their initial values."""
        self._runnable.reset()

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""
        return self._runnable.state()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""
        self._runnable.restore(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.trtbundle`, with the buffers that a run updates as they were at first.

        Raises:
            InputError: it cannot be written.
            BackendError: an engine was asked for.
        """
        if Path(path).suffix != SUFFIX:
            self.refuse(os.fspath(path))
        bundle = self.bundle if self._program is None else self.bundle.with_expected(self._program)
        bundle.save(path)

    def benchmark(self, inputs: Inputs | None = None, seconds: float = 2.0) -> Timing:
        """Raise BackendError: there is no engine to time."""
        self.refuse("benchmark")

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Raise BackendError: there is no engine to profile."""
        self.refuse("profile")

    def notes(self) -> list[str]:
        """Return what the user should know of the lowering."""
        return list(self._notes)

    def warnings(self) -> tuple[str, ...]:
        """Return that there is no engine, and why."""
        missing = library.reason()
        why = f" ({missing})" if missing else ""
        return (
            f"no engine was built{why}: ONNX Runtime runs the graph; save a {SUFFIX} and run `burnish build-trt` on a"
            " machine with TensorRT and a GPU",
        )

    def size(self) -> int:
        """Return the bytes of the bundle when saved, to within the samples and metadata."""
        return self.bundle.size()

    def node_count(self) -> int:
        """Return the number of nodes in the graph."""
        return self._runnable.node_count()

    def refuse(self, what: str) -> NoReturn:
        """Raise MissingDependencyError or BackendError: there is no engine for `what`; says why and what to do."""
        reason = library.reason()
        kind = MissingDependencyError if library.package_reason() else BackendError
        raise kind(
            f"{what}: no engine was built{f' ({reason})' if reason else ''}: save a {SUFFIX}, and run"
            " `burnish build-trt` on a machine with TensorRT and a GPU"
        )
