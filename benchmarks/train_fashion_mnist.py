"""Train the ResNets of `benchmarks.trained` on Fashion-MNIST, once, and write their weights.

python -m benchmarks.train_fashion_mnist [--deep] [--epochs 18] [--seed 0] [--threads 1]

Seed 1, of 9 epochs, is the second teacher of `benchmarks.pruning_accuracy`; the deep one, of 9, gets the exits of
`benchmarks.exits`. It takes about 75 s an epoch on one
thread of a processor with bfloat16 instructions. It needs the Debian package dataset-fashion-mnist. The test pictures
are read at the end only: nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import time

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.fashion_data import FashionBatches
from benchmarks.trained.fashion import fashion_mnist_pictures, network, normalized, weights

PEAK, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
WARM_UP = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deep", action="store_true", help="the network of 12 blocks")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    # The bfloat16 convolutions are twice as fast with channels last.
    model = network(chosen.deep).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, FashionBatches(), chosen.epochs)
    model = model.to(memory_format=torch.contiguous_format).eval()
    path = weights(chosen.seed, chosen.deep)
    path.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    pictures, labels = fashion_mnist_pictures("t10k")
    print(f"test accuracy {accuracy(model, normalized(pictures), labels):.4f}; {path.stat().st_size / 1e6:.2f} MB")


def train(model: nn.Module, batches: FashionBatches, epochs: int) -> None:
    """Train with SGD and a cosine after a linear warm-up, on random crops and mirror images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    steps = len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=epochs * steps, pct_start=WARM_UP, cycle_momentum=False
    )
    for epoch in range(epochs):
        start, total = time.process_time(), 0.0
        model.train()
        for pictures, labels in batches:
            batch = pictures.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(batch).float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / steps:.3f}, {time.process_time() - start:.0f} s of CPU", flush=True)


def accuracy(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        hits = [(model(batch).argmax(1) == truth).sum() for batch, truth in zip(
            torch.split(pictures, 500), torch.split(labels, 500), strict=True)]  # fmt: skip
    return float(sum(hits)) / len(labels)


if __name__ == "__main__":
    main()
