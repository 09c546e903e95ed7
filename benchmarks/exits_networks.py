"""The networks of `benchmarks.exits`: trained, with heads that are trained too, and samples that nothing is trained on.

A network gets heads at several places, all trained together with the rest of it, from labels and from what the network
said before; the exits of the one that is timed are some of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import burnish
from benchmarks.fashion_data import FashionBatches
from benchmarks.trained.fashion import fashion_mnist_pictures, load, normalized
from benchmarks.trained.sentiment import SentimentBatches, encoder, sentences, split
from burnish import Context, Pipeline, Program
from burnish.passes.exits import InsertExits
from burnish.passes.recovery import Recover

__all__ = ["NETWORKS", "Batch", "HeldOut", "Network", "Pictures"]

Batch = tuple[torch.Tensor, ...]


class HeldOut(Protocol):
    """Samples with classes that nothing is trained on, in random order."""

    @property
    def classes(self) -> torch.Tensor:
        """Classes, [samples]."""

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Return the inputs of some samples."""

    def order(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return an order of some samples in which neighbours have about the same size."""


@dataclass(frozen=True)
class Pictures:
    """Normalized pictures, [samples, 1, 28, 28], and their classes."""

    pictures: torch.Tensor
    classes: torch.Tensor

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Return some of them."""
        return (self.pictures[chosen],)

    def order(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return any: all have one size."""
        return torch.arange(len(chosen))


@dataclass(frozen=True)
class Network:
    """A trained network and its data.

    Attributes:
        alone: as trained without exits.
        program: as trained together with heads at all `places`; its exits are not calibrated.
        places: names of the places of heads, in order.
        used: numbers of the places of the exits that are timed.
        insert: gives a Program, in canonical form, exits at places of these numbers, in a mode.
        held_out: samples.
        calibrating: how many of them thresholds are chosen on; the others test.
        goal: how many times as fast it is to be.
    """

    alone: Program
    program: Program
    places: tuple[str, ...]
    used: tuple[int, ...]
    insert: Callable[[Sequence[int], str], InsertExits]
    held_out: HeldOut
    calibrating: int
    goal: float


class GridHead(nn.Module):
    """Features [samples, channels, height, width], averaged over 4 x 4 fields, and two layers."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        stride = size // 4
        self.pool = nn.AvgPool2d(size - 3 * stride, stride)
        self.inner = nn.Linear(16 * channels, 64)
        self.outer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.outer(torch.relu(self.inner(self.pool(x).flatten(1))))
        return logits


_BLOCKS = {"blocks.0": (16, 28), "blocks.2": (16, 28), "blocks.4": (32, 14), "blocks.7": (32, 14), "blocks.9": (64, 7)}
_LAYERS = 6


def fashion(keep: Path) -> Network:
    """The deeper ResNet on Fashion-MNIST; held out are the 10,000 test pictures."""
    pictures, classes = fashion_mnist_pictures("t10k")
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    held_out = Pictures(normalized(pictures)[order], classes[order])
    alone = Pipeline(["canonicalize"]).run(burnish.capture(load(deep=True), held_out.batch(torch.arange(4))))

    def insert(chosen: Sequence[int], mode: str = "per-sample") -> InsertExits:
        names = [list(_BLOCKS)[each] for each in chosen]
        torch.manual_seed(0)
        heads = tuple(GridHead(*_BLOCKS[name]) for name in names)
        return InsertExits(after=tuple(names), heads=heads, mode=mode)  # type: ignore[arg-type]

    places = range(len(_BLOCKS))
    training = Recover(
        data=FashionBatches(),
        epochs=2,
        loss="cross-entropy",
        precision="bfloat16",
        checkpoint=str(keep / "checkpoints"),
    )
    program = _made(keep / "fashion.burnish", alone, [insert(places), training])
    return Network(alone, program, tuple(_BLOCKS), (1, 3), insert, held_out, len(classes) // 2, 1.6)


def sentiment(keep: Path) -> Network:
    """MiniLM on sentences that people rated, from the package vaderSentiment."""
    training, held_out = split(sentences())
    batches = SentimentBatches(training)
    automatic = torch.export.Dim.AUTO
    dynamic = {name: {0: automatic, 1: automatic} for name in ("tokens", "mask")}

    def recover(**options: Any) -> Recover:
        return Recover(
            data=batches,
            epochs=2,
            loss="cross-entropy",
            learning_rate=1e-4,
            weight_decay=0.01,
            freeze=("bert.embeddings*",),
            precision="bfloat16",
            checkpoint=str(keep / "checkpoints"),
            **options,
        )

    def capture() -> Program:
        return burnish.capture(encoder(), training.batch(torch.arange(4)), dynamic)

    alone = _made(keep / "sentiment_alone.burnish", capture, ["canonicalize", recover(distill=None)])

    def insert(chosen: Sequence[int], mode: str = "per-sample") -> InsertExits:
        return InsertExits(layers=tuple(chosen), head="copy", mode=mode)  # type: ignore[arg-type]

    places = range(_LAYERS - 1)
    program = _made(keep / "sentiment.burnish", alone, [insert(places), recover()])
    names = tuple(f"layer {each}" for each in places)
    return Network(alone, program, names, (2, 3), insert, held_out, 5000, 1.4)


NETWORKS = {"fashion": fashion, "sentiment": sentiment}


def _made(path: Path, start: Program | Callable[[], Program], passes: Iterable[Any]) -> Program:
    """Return what passes make of a Program, from the file where it is there."""
    if not path.exists():
        context = Context(progress=False)
        made = Pipeline(list(passes)).run(start if isinstance(start, Program) else start(), context)
        print("; ".join(context.notes), flush=True)
        made.save(path)
    return Program.load(path)
