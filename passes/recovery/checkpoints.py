"""Checkpoints of a training: what it takes to go on after a kill with the same result, in one safetensors file.

A file is named after what decides the result: the Program and its teachers with their constants, the options, the seed.
So one folder serves several trainings, the rounds of a `repeat` among them, and none goes on from another's. Not
handled: other data, or another function as a loss, under the same options; give them a folder of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import FileFormatError, InputError
from burnish.compiler.program import Program

__all__ = ["Checkpoint", "Checkpoints"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training between two steps.

    Attributes:
        step: how many are done.
        epoch: of the next batch.
        place: of the next batch in its epoch.
        values: constants of the Program, by name.
        optimizer: its state: by name of the constant and of the value, or "" for plain numbers.
        random: state of PyTorch's generator.
    """

    step: int
    epoch: int
    place: int
    values: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]
    random: torch.Tensor


class Checkpoints:
    """The file of one training.

    Args:
        folder: where it is, made when needed.
        program: as it is before.
        teachers: what it learns from.
        text: the options, and what else decides the result.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, program: Program, teachers: Sequence[Program | nn.Module], text: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{str(folder)!r}: cannot be made for checkpoints: {reason}") from error
        parts = [text, _digest_of(program), *map(_digest_of, teachers)]
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        self.path = folder / f"recover-{name}.safetensors"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the file; one that was there stays whole until the new one is."""
        tensors = {f"value/{name}": value.detach().contiguous().clone() for name, value in checkpoint.values.items()}
        for name, state in checkpoint.optimizer.items():
            tensors |= {f"optimizer/{key}/{name}": value.detach().contiguous() for key, value in state.items()}
        tensors["random"] = checkpoint.random
        metadata = {"step": checkpoint.step, "epoch": checkpoint.epoch, "place": checkpoint.place}
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, {"burnish.recover": json.dumps(metadata)})

    def load(self) -> Checkpoint | None:
        """Return what was written last, None where nothing was.

        Raises:
            FileFormatError: the file is truncated or foreign.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = json.loads(file.metadata()["burnish.recover"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = {name[len("value/") :]: each for name, each in tensors.items() if name.startswith("value/")}
            optimizer: dict[str, dict[str, torch.Tensor]] = {}
            for name, each in tensors.items():
                if name.startswith("optimizer/"):
                    _, key, constant = name.split("/", 2)
                    optimizer.setdefault(constant, {})[key] = each
            step, epoch, place = (int(metadata[key]) for key in ("step", "epoch", "place"))
            return Checkpoint(step, epoch, place, values, optimizer, tensors["random"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise FileFormatError(
                f"{self.path}: this is no checkpoint of burnish, or it is truncated: remove it"
            ) from error

    def check(self, found: Checkpoint, values: Mapping[str, torch.Tensor], steps: int) -> None:
        """Check that what was read can be gone on from.

        Args:
            found: what was read.
            values: what it is of.
            steps: of the whole training.

        Raises:
            FileFormatError: it is of something else, or was changed.
        """
        state = [(name, each) for name, parts in found.optimizer.items() for each in parts.values() if each.dim()]
        tensors = [*found.values.items(), *state]
        fits = (
            0 <= found.step <= steps
            and min(found.epoch, found.place) >= 0
            and found.random.dtype == torch.uint8
            and found.values.keys() == values.keys()
            and found.optimizer.keys() <= values.keys()
            and bool(found.optimizer) == bool(found.step)
            and all(each.shape == values[name].shape for name, each in tensors)
            and all(bool(each.isfinite().all()) for _, each in tensors)
        )
        if not fits:
            raise FileFormatError(f"{self.path}: this checkpoint is not of this training, or was changed: remove it")


def _digest_of(model: Program | nn.Module) -> str:
    """Return a hash of what a model computes: of a Program its text and constants, of a module its form and state."""
    digest = hashlib.sha256((model.print() if isinstance(model, Program) else repr(model)).encode())
    constants = model.used_constants() if isinstance(model, Program) else model.state_dict()
    for name, value in sorted(constants.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
