"""Evaluate: what every head says of samples, how right it is, and what it costs to leave there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from burnish.compiler import interpreter, structure
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.cuts import ancestors, figures_of
from burnish.compiler.data import check_classes
from burnish.compiler.errors import InputError
from burnish.compiler.graphs import output_of
from burnish.passes.exits.straight import Straight
from burnish.passes.exits.thresholds import Answers

__all__ = ["Evaluation", "Metric", "evaluate"]

Metric = Literal["accuracy", "agreement"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the heads say.

    Attributes:
        scores: of every exit, how sure it is, [exits, samples].
        classes: of every exit, [exits, samples].
        own: classes of the model's own head, [samples].
        labels: what came with the samples, batch by batch.
        costs: FLOPs up to every exit, its head included, and of the whole, as parts of the model without exits.
    """

    scores: npt.NDArray[np.float64]
    classes: torch.Tensor
    own: torch.Tensor
    labels: tuple[Any, ...]
    costs: npt.NDArray[np.float64]

    @property
    def metric(self) -> Metric:
        """The metric that the samples allow: accuracy where there are classes."""
        return "accuracy" if all(isinstance(each, torch.Tensor) for each in self.labels) else "agreement"

    def answers(self, metric: Metric) -> Answers:
        """Return what is lost by every exit.

        Raises:
            InputError: accuracy is asked for, and the samples have no classes.
        """
        if metric == "accuracy":
            wanted = self._wanted()
            lost = (self.own == wanted).double() - (self.classes == wanted).double()
        else:
            lost = (self.classes != self.own).double()
        return Answers(self.scores, lost.numpy(), self.costs)

    def _wanted(self) -> torch.Tensor:
        tensors = [each for each in self.labels if isinstance(each, torch.Tensor)]
        found = torch.cat([each.flatten() for each in tensors]) if len(tensors) == len(self.labels) else torch.zeros(0)
        if len(found) != len(self.own) or found.is_floating_point() or found.dtype == torch.bool:
            raise InputError(
                "pass 'calibrate-exits': metric=accuracy needs calibration= of pairs (inputs, classes), one class for"
                " every sample; without classes there is metric=agreement"
            )
        return found


def evaluate(straight: Straight, pairs: Iterable[tuple[Mapping[str, Any], Any]]) -> Evaluation:
    """Ask all heads about all samples.

    Args:
        straight: gives what all heads say.
        pairs: inputs by name, and classes or None.

    Raises:
        InputError: the model has no such class.
    """
    scores: list[list[torch.Tensor]] = [[] for _ in straight.heads]
    classes: list[list[torch.Tensor]] = [[] for _ in straight.heads]
    own: list[torch.Tensor] = []
    labels: list[Any] = []
    for inputs, target in pairs:
        result = interpreter.run(straight.program, inputs)[0]
        outputs = structure.flatten(straight.program.signature.outputs, result, "the outputs")
        if isinstance(target, torch.Tensor) and not target.is_floating_point() and target.numel():
            check_classes(target, outputs[straight.output].shape[-1], "pass 'calibrate-exits'")
        own.append(outputs[straight.output].argmax(-1))
        labels.append(target)
        for index, head in enumerate(straight.heads):
            scores[index].append(outputs[head.score])
            classes[index].append(outputs[head.logits].argmax(-1))
    return Evaluation(
        scores=torch.stack([torch.cat(each).double() for each in scores]).numpy(),
        classes=torch.stack([torch.cat(each) for each in classes]),
        own=torch.cat(own),
        labels=tuple(labels),
        costs=_costs(straight),
    )


def _costs(straight: Straight) -> npt.NDArray[np.float64]:
    (graph,) = straight.program.graphs.values()
    outputs: dict[str, fx.Node] = output_of(graph).args[0]  # type: ignore[assignment]
    figures = figures_of(straight.program)

    def flops(nodes: set[fx.Node]) -> float:
        return float(sum(estimated(figures[node].flops) for node in nodes if node in figures))

    whole = flops(ancestors([outputs[straight.output]], set()))
    known, costs = set[fx.Node](), []
    wanted = [*((outputs[head.logits], outputs[head.score]) for head in straight.heads), (outputs[straight.output],)]
    for nodes in wanted:
        known |= ancestors(nodes, known)
        costs.append(flops(known) / max(whole, 1.0))
    return np.array(costs)
