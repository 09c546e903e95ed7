"""Losses of recovery: the task's own, what a student owes its teachers, and features of named nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from burnish.compiler.data import cross_entropy
from burnish.compiler.errors import InputError

__all__ = ["Distance", "TaskLoss", "agreement", "distillation", "feature_distance", "task_loss"]

_CLASSES = 2
Distance = Literal["kl", "mse"]
TaskLoss = Literal["cross-entropy", "mse"] | Callable[[Any, Any], torch.Tensor]
"""What the task itself asks for: by name on the first output, or a function of (outputs, targets)."""


def task_loss(loss: TaskLoss, outputs: Any, first: torch.Tensor, target: Any) -> torch.Tensor:
    """Return the loss of a batch, a number.

    Args:
        loss: which.
        outputs: as the model returns them, for a function.
        first: the first output, for a loss by name.
        target: classes [...] for outputs [..., C] with "cross-entropy", values like the output with "mse".

    Raises:
        InputError: the target does not fit.
    """
    if callable(loss):
        found = loss(outputs, target)
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise InputError(f"loss= must return one number as a tensor, but returned {type(found).__name__}")
        return found
    if not isinstance(target, torch.Tensor):
        raise InputError(f"loss {loss!r} takes a tensor as target, but got {type(target).__name__}")
    if loss == "mse":
        if target.shape != first.shape or target.is_complex():
            kind = str(target.dtype).removeprefix("torch.")
            raise InputError(
                f"loss 'mse': the target is {kind}{list(target.shape)}, but the output {list(first.shape)}"
            )
        return functional.mse_loss(first.float(), target.float())
    return cross_entropy(first, target, "loss 'cross-entropy'")


def distillation(
    distance: Distance, student: torch.Tensor, teachers: Sequence[torch.Tensor], weights: torch.Tensor, heat: float
) -> torch.Tensor:
    """Return how far an output is from what teachers give, a number.

    Args:
        distance: kl: the divergence of the classes' chances over the last dimension at a temperature, times its square
            (Hinton et al. 2015); mse: squares, in units of the teacher's variance.
        student: [..., C].
        teachers: the same shape, each.
        weights: of every teacher for every sample, [teachers, ...].
        heat: the temperature.

    Raises:
        InputError: kl has no classes to compare.
    """
    if distance == "kl" and (student.dim() < 1 or student.shape[-1] < _CLASSES):
        raise InputError(
            f"distill=kl compares chances over the last dimension, but an output is {list(student.shape)}: use"
            " distill=mse"
        )
    total = torch.zeros(())
    for teacher, weight in zip(teachers, weights, strict=True):
        if distance == "mse":
            squares = (student.float() - teacher.float()).square()
            each = squares.mean(-1) / teacher.float().var(correction=0).clamp(min=1e-12)
        else:
            wanted = (teacher.float() / heat).log_softmax(-1)
            given = (student.float() / heat).log_softmax(-1)
            each = (wanted.exp() * (wanted - given)).sum(-1) * heat**2
        total = total + (each * weight).mean()
    return total


def feature_distance(
    student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], names: Sequence[str]
) -> torch.Tensor:
    """Return the mean squared difference of named values, in units of the teacher's mean square (FitNets, ICLR 2015).

    Raises:
        InputError: shapes differ: something was pruned there.
    """
    total = torch.zeros(())
    for name in names:
        mine, wanted = student[name], teacher[name]
        if mine.shape != wanted.shape:
            raise InputError(
                f"feature {name!r} is {list(mine.shape)} in the student and {list(wanted.shape)} in its teacher: match"
                " nodes that pruning left as wide as they were"
            )
        scale = wanted.float().square().mean().clamp(min=1e-12)
        total = total + functional.mse_loss(mine.float(), wanted.float()) / scale
    return total / max(len(names), 1)


def agreement(output: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the part of the samples for which the largest of an output [..., C] is the class wanted, [...]."""
    return float((output.argmax(-1) == wanted).float().mean())
