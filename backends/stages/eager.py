"""A stage that stays a Program and runs in eager PyTorch: what can be trained, in processes of any kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from burnish.compiler.artifact import ArtifactBase
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import BackendError
from burnish.compiler.profile import Profile
from burnish.compiler.program import Program

__all__ = ["EagerArtifact"]


class EagerArtifact(ArtifactBase):
    """Runs a Program.

    Args:
        program: of one graph; it is copied, its constants are shared.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.samples)
        self._initial = program
        self.program = program.copy()

    @property
    def binding(self) -> Binding:
        """How it is called."""
        return Binding.of(self.program)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run; same pytree in and out as the Program. Where an input is not on the CPU, all go there."""
        args, kwargs = _together((args, kwargs))
        return self.program(*args, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.burnish`, with the present values of the buffers that calls update."""
        self.program.save(path)

    def reset(self) -> None:
        """Put the buffers that a run updates back to their initial values."""
        self.program = self._initial.copy()

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""
        # A run gives new tensors.
        return {name: self.program.constants[name] for name in self.program.mutable_constants()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""
        self.program.constants.update(state)

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Raise BackendError: eager PyTorch has no profile by node."""
        raise BackendError("stages that run in eager PyTorch have no profile: compile for another backend")

    def notes(self) -> list[str]:
        """Return nothing."""
        return []

    def size(self) -> int:
        """Return the bytes of the constants."""
        return sum(each.numel() * each.element_size() for each in self.program.used_constants().values())

    def node_count(self) -> int:
        """Return the number of operators."""
        return self.program.node_count()


def _together(values: Any) -> Any:
    """Return values whose tensors are on one device: that of the first which is not on the CPU."""
    away = [each.device for each in pytree.tree_leaves(values) if isinstance(each, torch.Tensor) and not each.is_cpu]
    if not away:
        return values
    return pytree.tree_map(lambda each: each.to(away[0]) if isinstance(each, torch.Tensor) else each, values)
