"""What artifacts have in common: sample inputs to time calls on, and buffers that a timed call must not change."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from burnish.compiler import structure
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs, as_arguments
from burnish.compiler.errors import InputError
from burnish.compiler.measure import Timing, benchmark

__all__ = ["ArtifactBase"]


class ArtifactBase(ABC):
    """A base for artifacts; see `backend.Artifact` for what they do.

    Args:
        samples: an input per name, for `benchmark` and `profile`; empty where none is known, as after loading.
    """

    def __init__(self, samples: Mapping[str, Any] | None = None) -> None:
        self._samples = dict(samples or {})

    @property
    @abstractmethod
    def binding(self) -> Binding:
        """How it is called."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run; same pytree in and out as the model, torch tensors."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""

    @abstractmethod
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""

    def warnings(self) -> tuple[str, ...]:
        """Return what makes the artifact unfit for use as it is."""
        return ()

    def benchmark(self, inputs: Inputs | None = None, seconds: float = 2.0) -> Timing:
        """Time calls on `inputs`, a tuple or a dict, by default the sample inputs; updated buffers are put back.

        Raises:
            InputError: there are no inputs, or unfitting ones.
        """
        args, kwargs = self.arguments(inputs)
        with self.undisturbed():
            return benchmark(lambda: self(*args, **kwargs), seconds)

    def arguments(self, inputs: Inputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call on `inputs`, or on the samples where None are given.

        Raises:
            InputError: there are neither.
        """
        if inputs is not None:
            return as_arguments(inputs)
        if not self._samples:
            raise InputError(
                "the artifact has no sample inputs, as after loading: pass inputs, a tuple or a dict by name"
            )
        args, kwargs = structure.unflatten(self.binding.inputs, self._samples)
        return args, kwargs

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put the buffers that runs update back in the end."""
        state = self.state()
        try:
            yield
        finally:
            self.restore(state)
