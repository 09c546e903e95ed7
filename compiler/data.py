"""Calibration and training data, as inputs of a Program by name, with targets where there are some.

An item is what the model is called with: a tensor, a tuple of arguments, or a dict by name; or a pair of that and a
target. Of data that can be read once only, a generator, what was read is kept, so that whoever comes next has it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional

from burnish.compiler.binding import Binding
from burnish.compiler.context import Context
from burnish.compiler.errors import InputError
from burnish.compiler.program import Program

__all__ = [
    "calibration_inputs", "calibration_pairs", "check_classes", "cross_entropy", "readable_again", "samples_in",
    "training_pairs",
]  # fmt: skip

_IGNORED = -100
Pair = tuple[dict[str, Any], Any]
"""Inputs by name, and the target, None where there is none."""


def calibration_inputs(program: Program, context: Context, samples: int, purpose: str) -> Iterator[dict[str, Any]]:
    """Yield inputs by name until they hold `samples` samples.

    Args:
        program: what will run on them.
        context: has the data.
        samples: how many at the most; the size of dimension 0 counts.
        purpose: the pass that asks, for messages.

    Raises:
        InputError: there are no data, an item does not fit the Program, or one holds NaN or infinity.
    """
    for inputs, _ in calibration_pairs(program, context, samples, purpose):
        yield inputs


def calibration_pairs(program: Program, context: Context, samples: int, purpose: str) -> Iterator[Pair]:
    """Yield inputs by name with their targets; as `calibration_inputs` otherwise."""
    if context.calibration is None:
        raise InputError(
            f"pass {purpose!r} needs calibration data: give calibration=, an iterable of inputs, some hundred samples;"
            " --calibration FILE on the command line"
        )
    context.calibration = readable_again(context.calibration, purpose, "calibration=")
    seen = 0
    for inputs, target in _pairs(program, context.calibration, "calibration", paired=False):
        yield inputs, target
        seen += samples_in(inputs)
        if seen >= samples:
            return
    if not seen:
        raise InputError(f"pass {purpose!r} needs calibration data, and calibration= is empty")


def training_pairs(program: Program, data: Iterable[Any], *, paired: bool) -> Iterator[Pair]:
    """Yield the inputs of one epoch by name, with their targets.

    Args:
        program: what will run on them.
        data: the batches.
        paired: every item is a pair of inputs and a target.

    Raises:
        InputError: an item does not fit the Program, is no pair, or holds NaN or infinity.
    """
    yield from _pairs(program, data, "training", paired)


def cross_entropy(output: torch.Tensor, target: Any, purpose: str) -> torch.Tensor:
    """Return the mean cross-entropy of logits [..., classes] with classes, integers [...]; -100 counts for nothing.

    Raises:
        InputError: the target does not fit; `purpose` says for what.
    """
    if not isinstance(target, torch.Tensor):
        raise InputError(f"{purpose} takes a tensor of classes as target, but got {type(target).__name__}")
    kind = str(target.dtype).removeprefix("torch.")
    whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    if output.dim() < 1 or target.shape != output.shape[:-1] or not whole:
        wanted = f"of shape {list(output.shape[:-1])}" if output.dim() else "for outputs [..., classes], not a number"
        raise InputError(f"{purpose} takes classes, integers {wanted}, but the target is {kind}{list(target.shape)}")
    target = target.long()
    real = target[target != _IGNORED]
    if not real.numel():
        raise InputError(
            f"{purpose}: no sample of the batch has a class: the target is empty, or {_IGNORED} throughout"
        )
    check_classes(real, output.shape[-1], purpose)
    return functional.cross_entropy(output.float().flatten(0, -2), target.flatten(), ignore_index=_IGNORED)


def check_classes(classes: torch.Tensor, count: int, purpose: str) -> None:
    """Check that integers, one at least, are classes of a model that has `count` of them.

    Raises:
        InputError: one is not; `purpose` says for what.
    """
    for odd in (int(classes.min()), int(classes.max())):
        if not 0 <= odd < count:
            raise InputError(f"{purpose}: class {odd} of {count}: they are numbered from 0")


def readable_again(data: Any, purpose: str, option: str) -> Iterable[Any]:
    """Return data that can be read many times.

    Raises:
        InputError: they are no iterable.
    """
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise InputError(f"pass {purpose!r}: {option} must be an iterable of inputs, but is {type(data).__name__}")
    return _Kept(data) if iter(data) is data else data


def samples_in(inputs: Mapping[str, Any]) -> int:
    """Return how many samples a batch holds: its largest dimension 0."""
    return max([value.shape[0] for value in inputs.values() if _rank(value)], default=1)


class _Kept:
    """Items of an iterator, perhaps an endless one, fetched when they are first asked for, and readable again."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self.items: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from self.items
        for item in self.source:
            self.items.append(item)
            yield item


def _pairs(program: Program, data: Iterable[Any], kind: str, paired: bool) -> Iterator[Pair]:
    binding = Binding.of(program)
    for index, item in enumerate(data):
        inputs, target = _bound(binding, item, f"{kind} item {index}", paired)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and not value.numel():
                raise InputError(f"{kind} item {index}: input {name!r} is empty: {list(value.shape)}")
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                raise InputError(f"{kind} item {index}: input {name!r} holds NaN or infinity")
        yield inputs, target


def _bound(binding: Binding, item: Any, place: str, paired: bool) -> Pair:
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    if paired:
        if not is_pair:
            raise InputError(
                f"{place}: a loss needs pairs (inputs, target), but this is a {type(item).__name__}; a .npz has"
                " its target in an array of that name"
            )
        try:
            return _bind(binding, item[0]), item[1]
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    try:
        return _bind(binding, item), None
    except InputError as error:
        # A pair of inputs and a target, unless the model takes such a pair.
        if not is_pair:
            raise InputError(f"{place}: {error}") from error
        try:
            return _bind(binding, item[0]), item[1]
        except InputError as inner:
            raise InputError(f"{place}: {error}; and as a pair with a target: {inner}") from inner


def _bind(binding: Binding, item: Any) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return binding.bind((), item)
    return binding.bind(tuple(item) if isinstance(item, (tuple, list)) else (item,), {})


def _rank(value: Any) -> int:
    return value.dim() if isinstance(value, torch.Tensor) else 0
