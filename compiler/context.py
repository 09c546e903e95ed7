"""What a pass may know besides the Program: the target, the calibration data, the seed, a way to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from burnish.compiler.errors import BackendError
from burnish.compiler.integers import IntegerRules

if TYPE_CHECKING:
    from burnish.compiler.profile import Profile
    from burnish.compiler.program import Program

__all__ = ["Context", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """What passes may know of the place where the Program will run.

    Attributes:
        name: the backend's name.
        dtypes: element types that it computes in.
        device: where it runs.
        integers: how quantized arithmetic must be written for it.
        alignment: widths of layers that are multiples of this are fastest.
    """

    name: str = "eager"
    dtypes: frozenset[torch.dtype] = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
    device: str = "cpu"
    integers: IntegerRules = field(default_factory=IntegerRules)
    alignment: int = 1


_NO_BACKEND = "this pipeline runs without a backend, so nothing can be measured: use burnish.compile"


def _no_measure(programs: Sequence[Program]) -> list[float]:
    raise BackendError(_NO_BACKEND)


def _no_profile(program: Program) -> Profile:
    raise BackendError(_NO_BACKEND)


@dataclass(kw_only=True)
class Context:
    """Handed to every pass.

    Attributes:
        target: a plain description that the backend declares.
        calibration: inputs, or (inputs, targets) pairs, for the passes that need data; may be None.
        seed: everything random in a pass derives from it.
        measure: seconds per call of Programs on their samples, on the chosen backend behind its own passes, taking
            turns.
        profile: seconds of every lowered node of a Program on its samples, on the chosen backend behind its own passes.
        reference: the Program that the pipeline started from.
        progress: show progress on a terminal for work above two seconds.
        notes: a pass adds what the user should know; the report shows them.
    """

    target: Target = field(default_factory=Target)
    calibration: Iterable[Any] | None = None
    seed: int = 0
    measure: Callable[[Sequence[Program]], list[float]] = _no_measure
    profile: Callable[[Program], Profile] = _no_profile
    reference: Program | None = None
    progress: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def can_measure(self) -> bool:
        """Whether there is a backend to measure on."""
        return self.measure is not _no_measure
