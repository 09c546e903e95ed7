"""calibrate-exits: thresholds that cost least while what is lost stays below a bound, with a confidence.

All heads are asked about all samples. On one half of them settings of all thresholds are searched for, from the safest
to the cheapest (see `thresholds`); on the other half these are tested one after the other (see `risk`), and the last
one that holds is taken. What is lost is accuracy, where samples come with classes, or agreement with the model's own
head.

The bound is on the mean over samples like these, whatever they are like: of other data nothing is said.
Not handled: other risks than these two; Programs with stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from burnish.compiler import interpreter, structure
from burnish.compiler.context import Context
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.cuts import ancestors, figures_of
from burnish.compiler.data import calibration_pairs
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.graphs import output_of
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.structure import Leaf
from burnish.passes.canonical.dce import erase_dead
from burnish.passes.exits.curve import write_curve
from burnish.passes.exits.insert import UNCALIBRATED
from burnish.passes.exits.risk import holds_up_to
from burnish.passes.exits.straight import Straight, straightened
from burnish.passes.exits.thresholds import Answers, Setting, settings

__all__ = ["CalibrateExits"]

_ALL = 1 << 62
_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class CalibrateExits(Pass):
    """Choose the thresholds of all exits together.

    Attributes:
        max_drop: how much may be lost: .01 is a point of accuracy, or of samples answered as by the whole model.
        delta: the chance that more is lost all the same.
        metric: accuracy, which needs samples with classes; agreement; where it is not given, what the data allow.
        curve: a file for the accuracy and cost of all settings: .json has the numbers, .svg a plot.
    """

    name: ClassVar[str] = "calibrate-exits"
    numerics: ClassVar[Numerics] = Lossy()
    max_drop: float = 0.01
    delta: float = 0.05
    metric: Literal["accuracy", "agreement"] | None = None
    curve: str = ""

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: an option has an unusable value, or the Program has no exits.
            InputError: there are no data, they do not fit, or have no classes and accuracy is asked for.
        """
        for name, value in (("max_drop", self.max_drop), ("delta", self.delta)):
            if not 0 < value < 1:
                raise OptionError(f"pass 'calibrate-exits': option {name!r} must be between 0 and 1, but is {value:g}")
        if self.curve and Path(self.curve).suffix not in (".json", ".svg"):
            raise OptionError(f"pass 'calibrate-exits': option 'curve' must be a .json or .svg, but is {self.curve!r}")
        straight = straightened(program)
        if straight is None:
            raise OptionError("pass 'calibrate-exits': the program has no exits: put insert-exits before it")
        with working("calibrate-exits: what every head says", context.progress):
            answers, metric, some = self._ask(straight, program, context)
        order = np.random.default_rng(context.seed).permutation(answers.scores.shape[1])
        searched, tested = (answers.part(part) for part in np.array_split(order, 2))
        found = settings(searched)
        # The first setting has no exits: nothing can be lost by it.
        held = 1 + holds_up_to([tested.loss(each) for each in found[1:]], self.max_drop, self.delta)
        chosen = found[held - 1]
        limits = {}
        for head, limit in zip(straight.heads, chosen.limits, strict=True):
            known = program.constants[head.threshold]
            limits[head.threshold] = torch.tensor(
                _threshold(limit, head.counts, len(straight.heads)), dtype=known.dtype
            )
        with rewriter.rewrite("calibrate"):
            rewriter.replace_constants(limits)
        program.warnings = tuple(each for each in program.warnings if each != UNCALIBRATED)
        context.notes += self._told(tested, chosen, metric, held < len(found))
        part = _measured(program, straight, some, context)
        if part is not None:
            context.notes.append(
                f"calibrate-exits: {tested.cost(chosen):.1%} of the latency predicted, {part:.1%} measured on a batch"
            )
        if self.curve:
            write_curve(Path(self.curve), tested, found, held, metric, self.max_drop)

    def _ask(self, straight: Straight, program: Program, context: Context) -> tuple[Answers, str, dict[str, Any]]:
        """Return what all heads say of all samples, what is lost by them, and a batch."""
        scores: list[list[torch.Tensor]] = [[] for _ in straight.heads]
        classes: list[list[torch.Tensor]] = [[] for _ in straight.heads]
        own: list[torch.Tensor] = []
        labels: list[Any] = []
        some: dict[str, Any] = {}
        for inputs, target in calibration_pairs(program, context, _ALL, self.name):
            outputs = structure.flatten(
                straight.program.signature.outputs, interpreter.run(straight.program, inputs)[0], "the outputs"
            )
            some = some or inputs
            own.append(outputs[straight.output].argmax(-1))
            labels.append(target)
            for index, head in enumerate(straight.heads):
                scores[index].append(outputs[head.score])
                classes[index].append(outputs[head.logits].argmax(-1))
        answer, said = torch.cat(own), [torch.cat(each) for each in classes]
        if len(answer) < _FEWEST:
            raise InputError("pass 'calibrate-exits' needs some hundred samples, but calibration= has 1")
        metric = self.metric or ("accuracy" if all(isinstance(each, torch.Tensor) for each in labels) else "agreement")
        if metric == "accuracy":
            wanted = _labels(labels, len(answer))
            lost = [(answer == wanted).double() - (each == wanted).double() for each in said]
        else:
            lost = [(each != answer).double() for each in said]
        certain = torch.stack([torch.cat(each).double() for each in scores])
        return Answers(certain.numpy(), torch.stack(lost).numpy(), _costs(straight)), metric, some

    def _told(self, tested: Answers, chosen: Setting, metric: str, is_bound: bool) -> list[str]:
        count = tested.scores.shape[1]
        parts = np.bincount(tested.leave_by(chosen), minlength=len(chosen.limits) + 1) / count
        leave = ", ".join(f"{part:.1%} by exit {index + 1}" for index, part in enumerate(parts[:-1]))
        cost = tested.cost(chosen)
        notes = [
            f"calibrate-exits: of {count:,} samples {leave}; {parts[-1]:.1%} stay; {cost:.1%} of the FLOPs",
            f"calibrate-exits: less than {self.max_drop:.2%} of {metric} is lost, with confidence {1 - self.delta:.0%};"
            f" {tested.loss(chosen).mean():+.2%} of these samples",
        ]
        if not np.isfinite(chosen.limits).any():
            notes.append("calibrate-exits: no exit can be used within that: more samples, or heads trained by recover")
        elif is_bound:
            notes.append("calibrate-exits: cheaper settings could not be told from ones that lose more: see max_drop")
        return notes


def _threshold(limit: float, counts: bool, exits: int) -> float:
    """Return the constant that a score is compared with, so that those above `limit` leave."""
    if counts:
        return exits + 1 if np.isposinf(limit) else 0 if np.isneginf(limit) else limit + 1
    return min(max(limit, 0.0), 1.0)


def _labels(labels: list[Any], count: int) -> torch.Tensor:
    tensors = [each for each in labels if isinstance(each, torch.Tensor)]
    found = torch.cat([each.flatten() for each in tensors]) if len(tensors) == len(labels) else torch.zeros(0)
    if len(found) != count or found.is_floating_point() or found.dtype == torch.bool:
        raise InputError(
            "pass 'calibrate-exits': metric=accuracy needs calibration= of pairs (inputs, classes), one class for every"
            " sample; without classes there is metric=agreement"
        )
    return found


def _costs(straight: Straight) -> npt.NDArray[np.float64]:
    """Return the FLOPs up to every exit, its head included, and of the whole, as parts of the model without exits."""
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


def _measured(program: Program, straight: Straight, inputs: Mapping[str, Any], context: Context) -> float | None:
    """Return the time of a batch, as a part of the time without exits; None where no backend is there to ask."""
    if not context.can_measure:
        return None
    alone = straight.program.copy()
    rewriter = Rewriter(alone, "straight")
    rewriter.set_output_structure(Leaf(straight.output))
    erase_dead(alone, rewriter)
    before, after = context.measure([replace(each, samples=dict(inputs)) for each in (alone, program)])
    return after / before
