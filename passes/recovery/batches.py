"""Batches of training data, epoch after epoch, in an order that a seed fixes and a resumed training finds again.

What is random in the data (shuffling, augmentation) draws from PyTorch's generator, which starts every epoch from the
seed and the number of the epoch, and is nobody else's meanwhile. Not handled: data that draw from NumPy's or Python's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from burnish.compiler.data import Pair, training_pairs
from burnish.compiler.errors import InputError
from burnish.compiler.program import Program

__all__ = ["Batches"]


class Batches:
    """An endless row of batches.

    Args:
        program: what they are for.
        data: of one epoch; may be read many times.
        seed: of what is random in them.
        paired: every item is a pair of inputs and a target.

    Attributes:
        epoch: number of the epoch of the next batch, from 0.
        place: number of the next batch in its epoch.
    """

    def __init__(self, program: Program, data: Iterable[Any], seed: int, *, paired: bool) -> None:
        self.program, self.data, self.seed, self.paired = program, data, seed, paired
        self.epoch = self.place = 0
        self._pairs: Iterator[Pair] | None = None
        self._random: torch.Tensor | None = None

    def skip_to(self, epoch: int, place: int) -> None:
        """Go to a batch, reading those before it in its epoch: what is random in them is drawn."""
        self.epoch, self.place, self._pairs = epoch, 0, None
        for _ in range(place):
            self.next()

    def next(self) -> Pair:
        """Return the next batch.

        Raises:
            InputError: there are no data, or an item does not fit the Program.
        """
        outside = torch.get_rng_state()
        try:
            if self._pairs is None:
                torch.manual_seed(_mixed(self.seed, self.epoch))
                self._pairs = training_pairs(self.program, self.data, paired=self.paired)
            elif self._random is not None:
                torch.set_rng_state(self._random)
            found = next(self._pairs, None)
            self._random = torch.get_rng_state()
        finally:
            torch.set_rng_state(outside)
        if found is None:
            if not self.place:
                raise InputError("pass 'recover' needs training data, and there are none: the data are empty")
            self.epoch, self.place, self._pairs = self.epoch + 1, 0, None
            return self.next()
        self.place += 1
        return found

    def in_epoch(self) -> int:
        """Return how many batches one epoch has, reading it where the data have no length."""
        try:
            return len(self.data)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self.data)


def _mixed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63
