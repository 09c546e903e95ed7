"""The loop of a training: batches, losses, the optimizer, its schedule, and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from burnish.compiler.errors import InputError
from burnish.compiler.trainable import Trainable
from burnish.passes.recovery.batches import Batches
from burnish.passes.recovery.checkpoints import Checkpoint, Checkpoints
from burnish.passes.recovery.losses import (
    Distance,
    TaskLoss,
    agreement,
    distillation,
    feature_distance,
    task_loss,
)
from burnish.passes.recovery.regrow import Regrowing
from burnish.passes.recovery.teachers import Teacher, Weighting, sample_weights

__all__ = ["Result", "Settings", "Training"]

# Seconds from one checkpoint to the next.
_EVERY = 30.0
_WARM_UP = 0.1
_SMOOTH = 0.9


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. See `Recover`.

    Attributes:
        heads: where there are exits, the outputs that all are to be the first one of these.
    """

    heads: tuple[str, ...]
    steps: int
    loss: TaskLoss | None
    distance: Distance | None
    temperature: float
    balance: float
    weighting: Weighting
    features: tuple[str, ...]
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    weight_decay: float
    schedule: Literal["cosine", "constant"]
    precision: Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Result:
    """How a training went.

    Attributes:
        first: the loss of the first steps.
        last: the loss of the last steps.
        metric: the part of the last samples that are right, or as the teachers have it; None where no classes are.
        resumed: how many steps an earlier process had done.
    """

    first: float
    last: float
    metric: float | None
    resumed: int


class Training:
    """A training of a Trainable.

    Args:
        module: is changed.
        settings: how.
        teachers: what to follow; may be none.
        batches: the data.
        regrowing: moves masks.
        checkpoints: the file to go on from and to write.
        progress: show it on a terminal.
    """

    def __init__(
        self,
        module: Trainable,
        settings: Settings,
        teachers: Sequence[Teacher],
        batches: Batches,
        regrowing: Regrowing | None,
        checkpoints: Checkpoints | None,
        progress: bool,
    ) -> None:
        self.module, self.settings, self.teachers, self.batches = module, settings, teachers, batches
        self.regrowing, self.checkpoints, self.progress = regrowing, checkpoints, progress
        self.optimizer = _optimizer(module, settings)
        if settings.features:
            module.observe(module.watched | frozenset(settings.features))

    def run(self) -> Result:
        """Train, from a checkpoint where there is one.

        Raises:
            InputError: the data do not fit, or the loss is not finite.
        """
        start = self._resume()
        losses: list[float] = []
        metric: float | None = None
        saved = time.monotonic()
        self.module.train()
        with self._shown() as (bar, task):
            for step in range(start, self.settings.steps):
                loss, now = self._step(step)
                losses.append(loss)
                metric = now if metric is None or now is None else _SMOOTH * metric + (1 - _SMOOTH) * now
                if bar is not None and task is not None:
                    text = f"loss {loss:.4g}" + ("" if metric is None else f", metric {metric:.3f}")
                    bar.update(task, completed=step + 1, description=text)
                if self.checkpoints is not None and time.monotonic() - saved >= _EVERY:
                    self._save(step + 1)
                    saved = time.monotonic()
        if self.checkpoints is not None and losses:
            self._save(self.settings.steps)
        self.module.eval()
        some = max(1, len(losses) // 10)
        first, last = (sum(part) / len(part) if part else math.nan for part in (losses[:some], losses[-some:]))
        return Result(first, last, metric, start)

    def _step(self, step: int) -> tuple[float, float | None]:
        inputs, target = self.batches.next()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _factor(self.settings, step)
        with self._autocast():
            taught = [teacher(inputs) for teacher in self.teachers]
            outputs = self.module(**inputs)
            loss, metric = self._loss(outputs, taught, target)
        if not bool(loss.isfinite()):
            raise InputError(
                f"pass 'recover': the loss is {float(loss.detach())} at step {step + 1}: a smaller learning_rate than"
                f" {self.settings.learning_rate:g}, or data within the range that the model knows, would keep it finite"
            )
        if not loss.requires_grad:
            raise InputError("pass 'recover': nothing can be trained: no output of floats depends on the weights")
        moves = self.regrowing is not None and self.regrowing.is_due(step)
        if self.regrowing is not None and moves:
            self.regrowing.before_backward()
        self.optimizer.zero_grad()
        self.module.backward(loss)
        self.optimizer.step()
        if self.regrowing is not None and moves:
            self.regrowing.move(step, self.optimizer)
        return float(loss.detach()), metric

    def _loss(
        self, outputs: Mapping[str, Any], taught: Sequence[tuple[dict[str, Any], dict[str, Any]]], target: Any
    ) -> tuple[torch.Tensor, float | None]:
        settings = self.settings
        floating = list(settings.heads) or [
            name for name, each in outputs.items() if isinstance(each, torch.Tensor) and each.is_floating_point()
        ]
        if not floating:
            raise InputError("pass 'recover': nothing can be trained: no output of floats depends on the weights")
        first = outputs[floating[0]]
        labels = target if settings.loss == "cross-entropy" and isinstance(target, torch.Tensor) else None
        parts: list[tuple[float, torch.Tensor]] = []
        metric: float | None = None
        if settings.loss is not None:
            if settings.heads:
                losses = [task_loss(settings.loss, outputs[name], outputs[name], target) for name in settings.heads]
                own = torch.stack(losses).mean()
            else:
                own = task_loss(settings.loss, self.module.unflatten(outputs), first, target)
            parts.append((1 - settings.balance if self.teachers else 1.0, own))
        if self.teachers and settings.distance is not None:
            follows = torch.zeros(())
            for name in floating:
                mine = _at_least_a_row(outputs[name])
                source = settings.heads[0] if settings.heads else name
                wanted = [_wanted(each[0], source, outputs[name], teacher.label) for each, teacher in zip(
                    taught, self.teachers, strict=True)]  # fmt: skip
                weights = sample_weights(wanted, settings.weighting, labels if name == floating[0] else None)
                follows = follows + distillation(settings.distance, mine, wanted, weights, settings.temperature)
                if metric is None and settings.distance == "kl":
                    mixed = sum(each.float().softmax(-1) * weight.unsqueeze(-1) for each, weight in zip(
                        wanted, weights, strict=True))  # fmt: skip
                    assert isinstance(mixed, torch.Tensor)
                    metric = agreement(mine, mixed.argmax(-1))
            share = settings.balance if settings.loss is not None else 1.0
            parts.append((share / max(1, len(settings.heads)), follows))
        if settings.features:
            parts.append((1.0, feature_distance(self.module.observed, taught[0][1], settings.features)))
        if labels is not None:
            metric = agreement(first, labels)
        return sum((share * each for share, each in parts), start=torch.zeros(())), metric

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast("cpu", torch.bfloat16)

    def _shown(self) -> AbstractContextManager[tuple[Progress | None, TaskID | None]]:
        console = Console(stderr=True)
        if not self.progress or not console.is_terminal:
            return nullcontext((None, None))
        return _Bar(console, self.settings.steps)

    def _save(self, step: int) -> None:
        assert self.checkpoints is not None
        optimizer = {
            name: {key: torch.as_tensor(each) for key, each in self.optimizer.state[value].items() if each is not None}
            for name, value in self.module.trained.items()
        }
        values: dict[str, torch.Tensor] = {**self.module.trained, **self.module.statistics}
        if self.regrowing is not None:
            values |= self.regrowing.masks
        self.checkpoints.save(
            Checkpoint(step, self.batches.epoch, self.batches.place, values, optimizer, torch.get_rng_state())
        )

    @torch.no_grad()
    def _resume(self) -> int:
        found = self.checkpoints.load() if self.checkpoints is not None else None
        if found is None:
            return 0
        values: dict[str, torch.Tensor] = {**self.module.trained, **self.module.statistics}
        if self.regrowing is not None:
            values |= self.regrowing.masks
        assert self.checkpoints is not None
        self.checkpoints.check(found, values, self.settings.steps)
        for name, value in values.items():
            value.copy_(found.values[name])
        for name, state in found.optimizer.items():
            self.optimizer.state[self.module.trained[name]] = dict(state)
        if found.step < self.settings.steps:
            self.batches.skip_to(found.epoch, found.place)
        torch.set_rng_state(found.random)
        return found.step


class _Bar(AbstractContextManager[tuple[Progress | None, TaskID | None]]):
    def __init__(self, console: Console, steps: int) -> None:
        self.bar = Progress(console=console, transient=True)
        self.task = self.bar.add_task("recover", total=steps)

    def __enter__(self) -> tuple[Progress | None, TaskID | None]:
        self.bar.start()
        return self.bar, self.task

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _optimizer(module: Trainable, settings: Settings) -> torch.optim.Optimizer:
    parameters = list(module.trained.values())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)


def _factor(settings: Settings, step: int) -> float:
    """Return the learning rate as a part of the largest: a linear warm-up, and a cosine to 0."""
    warm = max(1.0, settings.steps * _WARM_UP)
    if settings.schedule == "constant":
        return 1.0
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, settings.steps - warm)))


def _wanted(outputs: Mapping[str, Any], name: str, mine: torch.Tensor, label: str) -> torch.Tensor:
    found = outputs.get(name)
    if not isinstance(found, torch.Tensor) or found.shape != mine.shape:
        has = list(found.shape) if isinstance(found, torch.Tensor) else "nothing"
        raise InputError(f"{label} gives {has} for output {name!r}, but the program gives {list(mine.shape)}")
    return _at_least_a_row(found)


def _at_least_a_row(value: torch.Tensor) -> torch.Tensor:
    return value if value.dim() else value.reshape(1)
