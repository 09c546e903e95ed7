"""One pruned and trained network of `pruning_accuracy`: burnish's or Torch-Pruning's, with the same training behind.

Both are given the same ratio of every layer's channels. Torch-Pruning keeps multiples of 8, burnish what it chooses for
the ONNX backend. Torch-Pruning's module is captured after pruning and trained by burnish's `recover` too: what differs
is what was pruned, and nothing else.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import burnish
from benchmarks.fashion_data import FashionBatches
from benchmarks.trained.fashion import fashion_mnist_pictures, load, normalized
from burnish import Context, Pipeline, Program
from burnish.compiler.loading import parse_backend
from burnish.passes.recovery import Recover

__all__ = ["Run", "make"]

_SAMPLES = 256
_ROUND_TO = 8
_PEER = {"l2": "GroupMagnitudeImportance", "taylor": "GroupTaylorImportance", "random": "RandomImportance"}


@dataclass(frozen=True)
class Run:
    """What to make.

    Attributes:
        tool: burnish or Torch-Pruning.
        prune: options of burnish's prune, or "" for the whole network.
        importance: l2, taylor or random.
        ratio: for Torch-Pruning.
        steps: batches of 128 to train on.
        teachers: seeds of the trained networks to learn from; none for the labels alone.
        weighting: of several teachers.
        seed: of pruning and training.
    """

    tool: Literal["burnish", "Torch-Pruning"] = "burnish"
    prune: str = ""
    importance: str = "l2"
    ratio: float = 0.5
    steps: int = 468
    teachers: tuple[int, ...] = (0,)
    weighting: Literal["equal", "confidence", "agreement"] = "equal"
    seed: int = 0


def make(run: Run, path: Path) -> str:
    """Prune, train, and save the Program at `path`; return what the passes noted."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    model, pictures = load(), normalized(fashion_mnist_pictures("train")[0][:_SAMPLES])
    labels = fashion_mnist_pictures("train")[1][:_SAMPLES]
    if run.tool == "Torch-Pruning":
        _by_torch_pruning(model, run, pictures, labels)
    program = burnish.capture(model, (pictures[:2],))
    passes: list[Any] = ["canonicalize"]
    if run.prune:
        passes.append(f"prune{{{run.prune},importance={run.importance}}}")
    data = list(zip(torch.split(pictures, 64), torch.split(labels, 64), strict=True))
    backend, options = parse_backend("onnx")
    context = Context(target=backend.target(options), calibration=data, seed=run.seed, progress=False)
    pruned = Pipeline(passes).run(program, context)
    teachers = tuple(burnish.capture(load(seed), (pictures[:2],)) for seed in run.teachers)
    training = Recover(
        data=FashionBatches(),
        steps=run.steps,
        loss="cross-entropy",
        distill="kl" if teachers else None,
        teachers=teachers,
        weighting=run.weighting,
        precision="bfloat16",
    )
    trained: Program = Pipeline([training]).run(pruned, context)
    trained.save(path)
    return "; ".join(context.notes)


def _by_torch_pruning(model: nn.Module, run: Run, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    import torch_pruning

    torch.manual_seed(run.seed)
    importance = getattr(torch_pruning.importance, _PEER[run.importance])()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        pictures[:2],
        importance=importance,
        pruning_ratio=run.ratio,
        ignored_layers=[model.head],
        round_to=_ROUND_TO,
    )
    if run.importance == "taylor":
        nn.functional.cross_entropy(model(pictures), labels).backward()  # type: ignore[no-untyped-call]
    pruner.step()
    model.zero_grad()
