"""Training data of Fashion-MNIST, in batches: random crops and mirror images, shuffled anew each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.trained.fashion import MEAN, STD, fashion_mnist_pictures, normalized

__all__ = ["FashionBatches"]

_BATCH = 128
_PAD = 2


class FashionBatches:
    """Pairs of pictures (batch, 1, 28, 28) and labels (batch,), from the training pictures; may be read many times."""

    def __init__(self) -> None:
        pictures, self.labels = fashion_mnist_pictures("train")
        self.pictures = normalized(pictures)

    def __len__(self) -> int:
        return len(self.labels) // _BATCH

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for chosen in torch.split(torch.randperm(len(self.labels))[: len(self) * _BATCH], _BATCH):
            yield _augmented(self.pictures[chosen]), self.labels[chosen]


def _augmented(batch: torch.Tensor) -> torch.Tensor:
    """Return random crops of `batch`, padded by _PAD, half of them mirrored."""
    count, _, height, width = batch.shape
    padded = nn.functional.pad(batch, (_PAD,) * 4, value=-MEAN / STD)
    rows = torch.randint(2 * _PAD + 1, (count, 1, 1)) + torch.arange(height).view(1, -1, 1)
    columns = torch.randint(2 * _PAD + 1, (count, 1, 1)) + torch.arange(width).view(1, 1, -1)
    columns = torch.where(torch.rand(count, 1, 1) < 0.5, columns, columns.flip(2))
    return padded[:, 0][torch.arange(count).view(-1, 1, 1), rows, columns].unsqueeze(1)
