"""What a score of a trained model is: data in batches, what of the outputs it needs, and its standard error.

Standard errors come from leaving out one independent unit at a time (the jackknife), so that the difference of two
models on the same data has one too, which counts that their errors go together.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "Inputs",
    "Lazy",
    "NotInstalled",
    "Statistic",
    "Task",
    "Trained",
    "call",
    "folder_of",
    "leave_one_out",
    "mean_of",
]

Inputs = dict[str, torch.Tensor] | tuple[torch.Tensor, ...]
# The value of a score and its values without each unit in turn.
Statistic = Callable[[torch.Tensor], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """A score of a model on real data.

    Attributes:
        metric: name of the score.
        batches: the evaluation data; may be read more than once.
        keep: of the inputs and outputs of a batch, what the score needs: a tensor with a row for each sample.
        statistic: the score of the rows of all batches.
        lower: whether lower is better.
    """

    metric: str
    batches: Sequence[Inputs]
    keep: Callable[[Inputs, Any], torch.Tensor]
    statistic: Statistic
    lower: bool = False

    def rows(self, model: Any) -> torch.Tensor:
        """Run `model`, eager or compiled, on all batches and return what the score needs."""
        return torch.cat([self.keep(inputs, call(model, inputs)).clone() for inputs in self.batches])

    def score(self, rows: torch.Tensor) -> tuple[float, float]:
        """Return the score and its standard error."""
        value, without = self.statistic(rows)
        return value, _jackknife(without)

    def drop(self, rows: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
        """Return by how much `rows` score worse than `reference`, and the standard error of that difference."""
        (value, without), (before, before_without) = self.statistic(rows), self.statistic(reference)
        sign = -1 if self.lower else 1
        return sign * (before - value), _jackknife(before_without - without)


@dataclass(frozen=True)
class Trained:
    """A trained model with data.

    Attributes:
        name: for tables.
        model: in evaluation mode.
        inputs: a real batch of two, to capture with.
        one: a real batch of one, to time with.
        data: a larger real batch.
        calibration: real inputs in batches, some hundred samples, none of which is in the tasks.
        tasks: the scores.
        dynamic_shapes: as in `torch.export`; None for burnish's default.
    """

    name: str
    model: torch.nn.Module
    inputs: Inputs
    one: Inputs
    data: Inputs
    calibration: Sequence[Inputs]
    tasks: tuple[Task, ...]
    dynamic_shapes: Any = None


@dataclass(frozen=True)
class Lazy(Sequence[Inputs]):
    """Batches that are made when they are read, for data that would fill the memory."""

    batches: int
    make: Callable[[int], Inputs]

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        return self.make(index)


class NotInstalled(SystemExit):
    """Data or weights that are not on this machine; the text says what to install."""


def call(model: Any, inputs: Inputs) -> Any:
    """Return the outputs of `model`, without gradients."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def folder_of(package: str, extra: str) -> Path:
    """Return the folder of an installed package, without importing it; `extra` of burnish brings it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise NotInstalled(f"{package} is not installed: pip install 'burnish[{extra}]'")
    return Path(spec.origin).parent


def mean_of(values: Callable[[torch.Tensor], torch.Tensor]) -> Statistic:
    """Return the mean of a value for each row; rows are the units."""

    def statistic(rows: torch.Tensor) -> tuple[float, np.ndarray]:
        found = values(rows).double().numpy()
        return float(found.mean()), (found.sum() - found) / (len(found) - 1)

    return statistic


def leave_one_out(units: int, value: Callable[[torch.Tensor, np.ndarray], float]) -> Statistic:
    """Return what `value` makes of the rows and the numbers of the units that count."""

    def statistic(rows: torch.Tensor) -> tuple[float, np.ndarray]:
        everything = np.arange(units)
        without = [value(rows, np.delete(everything, unit)) for unit in everything]
        return value(rows, everything), np.array(without)

    return statistic


def _jackknife(without: np.ndarray) -> float:
    count = len(without)
    return float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))
