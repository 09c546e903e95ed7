"""Something saved that can be called: an artifact of any backend, or a Program, which runs in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.compiler import structure
from burnish.compiler.backend import Artifact
from burnish.compiler.binding import Binding
from burnish.compiler.loading import load
from burnish.compiler.program import Program
from burnish.tools.example_inputs import inputs_for, read_npz

__all__ = ["Runnable"]


@dataclass(frozen=True, slots=True)
class Runnable:
    """What a file holds.

    Attributes:
        call: called like the model.
        binding: how it is called.
        samples: example inputs by name; only a Program keeps them.
        artifact: the artifact, None for a Program.
    """

    call: Callable[..., Any]
    binding: Binding
    samples: Mapping[str, Any]
    artifact: Artifact | None

    @staticmethod
    def load(file: Path) -> Runnable:
        """Load a file.

        Raises:
            InputError: no such file.
            FileFormatError: the file is truncated, foreign, or of a kind that no backend reads.
        """
        loaded = load(file)
        if isinstance(loaded, Program):
            return Runnable(loaded, Binding.of(loaded), loaded.samples, None)
        return Runnable(loaded, loaded.binding, {}, loaded)

    def arguments(
        self, texts: Sequence[str], seed: int, npz: Path | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call: from the `.npz`, or else seeded random ones; `texts` give sizes.

        Raises:
            InputError, OptionError, FileFormatError: see `burnish.tools.example_inputs`.
        """
        binding = self.binding
        values = read_npz(npz, binding) if npz is not None else inputs_for(binding, texts, seed, self.samples)
        args, kwargs = structure.unflatten(binding.inputs, values)
        return args, kwargs
