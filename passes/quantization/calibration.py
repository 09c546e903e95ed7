"""The calibration data of a context, as inputs of a Program by name.

An item is what the model is called with: a tensor, a tuple of arguments, or a dict by name; or a pair of that and a
target, which is left out. Of data that can be read once only, a generator, what was read is kept, so that the next
pass has it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from burnish.compiler.binding import Binding
from burnish.compiler.context import Context
from burnish.compiler.errors import InputError
from burnish.compiler.program import Program

__all__ = ["calibration_inputs"]


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
    if context.calibration is None:
        raise InputError(
            f"pass {purpose!r} needs calibration data: give calibration=, an iterable of inputs, some hundred samples;"
            " --calibration FILE on the command line"
        )
    if not isinstance(context.calibration, Iterable) and not hasattr(context.calibration, "__getitem__"):
        raise InputError(
            f"pass {purpose!r}: calibration= must be an iterable of inputs, but is {type(context.calibration).__name__}"
        )
    if iter(context.calibration) is context.calibration:
        context.calibration = _Kept(context.calibration)
    binding, seen = Binding.of(program), 0
    for index, item in enumerate(context.calibration):
        inputs = _bound(binding, item, index)
        yield inputs
        seen += max([value.shape[0] for value in inputs.values() if _rank(value)], default=1)
        if seen >= samples:
            return
    if not seen:
        raise InputError(f"pass {purpose!r} needs calibration data, and calibration= is empty")


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


def _bound(binding: Binding, item: Any, index: int) -> dict[str, Any]:
    try:
        inputs = _bind(binding, item)
    except InputError as error:
        # A pair of inputs and a target, unless the model takes such a pair.
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(f"calibration item {index}: {error}") from error
        try:
            inputs = _bind(binding, item[0])
        except InputError as inner:
            raise InputError(f"calibration item {index}: {error}; and as a pair with a target: {inner}") from inner
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(f"calibration item {index}: input {name!r} holds NaN or infinity")
    return inputs


def _bind(binding: Binding, item: Any) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return binding.bind((), item)
    return binding.bind(tuple(item) if isinstance(item, (tuple, list)) else (item,), {})


def _rank(value: Any) -> int:
    return value.dim() if isinstance(value, torch.Tensor) else 0
