"""A small convolutional network trained on scikit-learn's digits in seconds: the fast accuracy test."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.trained.task import Inputs, Task, Trained, folder_of, mean_of

__all__ = ["digits"]

_TEST = 500
_CALIBRATION = 300
_EPOCHS, _BATCH = 10, 64


def digits() -> Trained:
    """Train and return the network; inputs are (batch, 1, 8, 8) in 0..1; the score is on 500 digits it has not seen."""
    folder_of("sklearn", "demo")
    from sklearn.datasets import load_digits

    raw = load_digits()
    pictures = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(raw.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pictures, labels = pictures[order], labels[order]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _network()
        _train(model, pictures[_TEST:], labels[_TEST:])
    test, truth = pictures[:_TEST], labels[:_TEST]
    batches: list[Inputs] = [(batch,) for batch in torch.split(test, 100)]
    calibration: list[Inputs] = [(batch,) for batch in torch.split(pictures[_TEST:][:_CALIBRATION], 50)]
    task = Task(
        "accuracy on 500 digits", batches, lambda _, outputs: outputs, mean_of(lambda rows: rows.argmax(1) == truth)
    )
    return Trained("digits CNN", model.eval(), (test[:2],), (test[:1],), (test[:100],), calibration, (task,))


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, out in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        if out == 32:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


def _train(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = len(labels) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=_EPOCHS * steps)
    for _ in range(_EPOCHS):
        for chosen in torch.split(torch.randperm(len(labels))[: steps * _BATCH], _BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pictures[chosen]), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
