"""Fashion-MNIST from the Debian package `dataset-fashion-mnist`, and the ResNets trained on it.

`python -m benchmarks.train_fashion_mnist` wrote the weights in benchmarks/weights/. The package is needed to
score it.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.trained.task import Inputs, NotInstalled, Task, Trained, mean_of

__all__ = [
    "MEAN",
    "STD",
    "SmallResNet",
    "fashion_mnist",
    "fashion_mnist_pictures",
    "load",
    "network",
    "normalized",
    "weights",
]

MEAN, STD = 0.2860, 0.3530
_DATA = Path("/usr/share/datasets/fashion-mnist")
_HEADER = {"images": 16, "labels": 8}
_CALIBRATION = 300


class Block(nn.Module):
    """Two 3x3 convolutions with batch norms, added to the input, or to a 1x1 convolution of it where shapes change."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Pictures (batch, 1, 28, 28), normalized with MEAN and STD, to logits (batch, 10); 0.38 M parameters."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96), depths: tuple[int, ...] = (1, 2, 2)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks, width = [], widths[0]
        for stage, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                blocks.append(Block(width, out, 2 if stage > 0 and number == 0 else 1))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features: torch.Tensor = self.blocks(self.stem(x))
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


def fashion_mnist() -> Trained:
    """Return the trained ResNet; the score is the accuracy on the 10,000 test pictures."""
    pictures, labels = fashion_mnist_pictures("t10k")
    model = load()
    test = normalized(pictures)
    train = normalized(fashion_mnist_pictures("train")[0][:_CALIBRATION])
    batches: list[Inputs] = [(batch,) for batch in torch.split(test, 100)]
    calibration: list[Inputs] = [(batch,) for batch in torch.split(train, 50)]
    task = Task(
        "accuracy on 10,000 pictures",
        batches,
        lambda _, outputs: outputs,
        mean_of(lambda rows: rows.argmax(1) == labels),
    )
    name = "Fashion-MNIST ResNet"
    return Trained(name, model, (test[:2],), (test[:1],), (test[:100],), calibration, (task,))


def network(deep: bool = False) -> SmallResNet:
    """Return a ResNet, untrained: of 5 blocks, or of 12, thinner ones, which exits stand between."""
    return SmallResNet((16, 32, 64), (3, 5, 4)) if deep else SmallResNet()


def weights(seed: int, deep: bool = False) -> Path:
    """Return the file of the network that a seed gave."""
    name = "fashion_mnist_resnet" + "_deep" * deep + (f"_{seed}" if seed else "")
    return Path(__file__).parent.parent / "weights" / f"{name}.safetensors"


def load(seed: int = 0, deep: bool = False) -> SmallResNet:
    """Return the trained network of a seed, in evaluation mode."""
    model = network(deep)
    model.load_state_dict(load_file(weights(seed, deep)))
    return model.eval()


def fashion_mnist_pictures(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 pictures (n, 1, 28, 28) and int64 labels (n,) of `split`, "train" (60,000) or "t10k" (10,000)."""
    if not _DATA.is_dir():
        raise NotInstalled("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    found = []
    for kind, dimensions in (("images", 3), ("labels", 1)):
        with gzip.open(_DATA / f"{split}-{kind}-idx{dimensions}-ubyte.gz") as file:
            found.append(torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=_HEADER[kind]).copy()))
    return found[0].reshape(-1, 1, 28, 28), found[1].long()


def normalized(pictures: torch.Tensor) -> torch.Tensor:
    """Return uint8 `pictures` as float32 of mean 0 and standard deviation 1 over the training pictures."""
    return (pictures.float() / 255 - MEAN) / STD
