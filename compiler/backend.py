"""What a backend is, and what it makes: an Artifact, called like the model it came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from burnish.compiler.context import Target

if TYPE_CHECKING:
    import torch

    from burnish.compiler.binding import Binding
    from burnish.compiler.capture import Inputs
    from burnish.compiler.measure import Timing
    from burnish.compiler.pipeline import Pipeline
    from burnish.compiler.profile import Profile
    from burnish.compiler.program import Program

__all__ = ["Artifact", "Backend", "Finding", "refuse_untimed", "suffixes"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a backend cannot take.

    Attributes:
        node: display name of the node.
        operator: its operator.
        reason: why the backend cannot take it.
        module: path of the module that the node came from.
        rule: kind of the finding, "quantization" for one; "" where there are no kinds.
        fix: the pass, option or change of the model that would mend it; "" where none is known.
    """

    node: str
    operator: str
    reason: str
    module: str = ""
    rule: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.reason}"


@runtime_checkable
class Backend(Protocol):
    """Lowers Programs. Options arrive as keyword values, checked by the backend."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    """Ending of the files that its artifacts save and load, ".onnx" for one; others are in `other_suffixes`, if any."""

    def target(self, options: Mapping[str, Any]) -> Target:
        """Return what passes may know of where the Program will run.

        Raises:
            OptionError: an option is unknown or has an unusable value.
        """

    def default_passes(self, options: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline that `compile(passes=None)` runs."""

    def check(self, program: Program) -> list[Finding]:
        """List what the backend cannot take, node by node, without lowering anything."""

    def emit(self, program: Program, options: Mapping[str, Any]) -> Artifact:
        """Lower `program`.

        Raises:
            OptionError: an option is unknown or has an unusable value.
            BackendError: the program cannot be lowered; names the node.
        """

    def load(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> Artifact:
        """Load what an artifact of this backend saved.

        Raises:
            FileFormatError: the file is truncated or foreign.
        """


def suffixes(backend: Backend) -> tuple[str, ...]:
    """Return the endings of the files that the artifacts of `backend` save and load."""
    return (backend.suffix, *getattr(backend, "other_suffixes", ()))


class Artifact(Protocol):
    """A lowered Program: runs without the model's source. `artifact.ArtifactBase` has some of it."""

    @property
    def binding(self) -> Binding:
        """How it is called: names, types and structure of inputs and outputs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run; same pytree in and out as the model, torch tensors."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact; an interrupted save leaves an old file whole."""

    def reset(self) -> None:
        """Put the buffers that a run updates back to their initial values."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""

    def benchmark(self, inputs: Inputs | None = None, seconds: float = 2.0) -> Timing:
        """Time calls on `inputs`, by default the sample inputs; leaves the state as it was."""

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Return the time of each node of one run, mapped back to the model's modules."""

    def notes(self) -> list[str]:
        """Return what the user should know of the lowering."""

    def warnings(self) -> tuple[str, ...]:
        """Return what makes the artifact unfit for use as it is."""

    def size(self) -> int:
        """Return the bytes of the artifact when saved."""

    def node_count(self) -> int:
        """Return the number of operators or kernels in the lowered graph."""


def refuse_untimed(artifact: Artifact) -> None:
    """Let an artifact whose `is_timed` is False say why its calls are not to be timed: it stands for another.

    Raises:
        BurnishError: what its `benchmark` raises.
    """
    if not getattr(artifact, "is_timed", True):
        artifact.benchmark()
