"""calibrate-exits: thresholds that cost least while what is lost stays below a bound, with a confidence.

All heads are asked about all samples. On one half of them settings of all thresholds are searched for, from the safest
to the cheapest (see `thresholds`), by agreement with the model's own head. On the other half these are tested one after
the other (see `risk`), and the last one that holds is taken (see `choice`): for accuracy, where samples come with
classes, or for agreement.

The bound is on the mean over samples like these, whatever they are like: of other data nothing is said.
Not handled: other risks than these two; Programs with stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from burnish.compiler.context import Context
from burnish.compiler.data import calibration_pairs
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.structure import Leaf
from burnish.passes.canonical.dce import erase_dead
from burnish.passes.exits.choice import Choice, choose
from burnish.passes.exits.curve import write_curve
from burnish.passes.exits.evaluate import Metric, evaluate
from burnish.passes.exits.insert import UNCALIBRATED
from burnish.passes.exits.straight import Straight, straightened

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
    metric: Metric | None = None
    curve: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("max_drop", self.max_drop), ("delta", self.delta)):
            if not 0 < value < 1:
                raise OptionError(f"pass 'calibrate-exits': option {name!r} must be between 0 and 1, but is {value:g}")
        if self.curve and Path(self.curve).suffix not in (".json", ".svg"):
            raise OptionError(f"pass 'calibrate-exits': option 'curve' must be a .json or .svg, but is {self.curve!r}")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: the Program has no exits.
            InputError: there are no data, they do not fit, or have no classes and accuracy is asked for.
        """
        straight = straightened(program)
        if straight is None:
            raise OptionError("pass 'calibrate-exits': the program has no exits: put insert-exits before it")
        with working("calibrate-exits: what every head says", context.progress):
            asked = evaluate(straight, calibration_pairs(program, context, _ALL, self.name))
        if len(asked.own) < _FEWEST:
            raise InputError("pass 'calibrate-exits' needs some hundred samples, but calibration= has 1")
        metric = self.metric or asked.metric
        choice = choose(asked.answers(metric), asked.answers("agreement"), self.max_drop, self.delta, context.seed)
        chosen, tested = choice.setting, choice.tested
        limits = {}
        for head, limit in zip(straight.heads, chosen.limits, strict=True):
            known = program.constants[head.threshold]
            limits[head.threshold] = torch.tensor(
                _threshold(limit, head.counts, len(straight.heads)), dtype=known.dtype
            )
        with rewriter.rewrite("calibrate"):
            rewriter.replace_constants(limits)
        program.warnings = tuple(each for each in program.warnings if each != UNCALIBRATED)
        values = ", ".join(f"{float(value):.4g}" for value in limits.values())
        context.notes += [*self._told(choice, metric), f"calibrate-exits: thresholds {values}"]
        part = _measured(program, straight, context)
        if part is not None:
            context.notes.append(
                f"calibrate-exits: {tested.cost(chosen):.1%} of the latency predicted, {part:.1%} measured on a batch"
            )
        if self.curve:
            write_curve(Path(self.curve), choice, metric, self.max_drop)

    def _told(self, choice: Choice, metric: str) -> list[str]:
        tested, chosen = choice.tested, choice.setting
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
        elif choice.held < len(choice.found):
            notes.append("calibrate-exits: cheaper settings could not be told from ones that lose more: see max_drop")
        return notes


def _threshold(limit: float, counts: bool, exits: int) -> float:
    """Return the constant that a score is compared with, so that those above `limit` leave."""
    if counts:
        return exits + 1 if np.isposinf(limit) else 0 if np.isneginf(limit) else limit + 1
    return min(max(limit, 0.0), 1.0)


def _measured(program: Program, straight: Straight, context: Context) -> float | None:
    """Return the time of a batch, as a part of the time without exits; None where no backend is there to ask."""
    if not context.can_measure:
        return None
    inputs, _ = next(iter(calibration_pairs(program, context, 1, "calibrate-exits")))
    alone = straight.program.copy()
    rewriter = Rewriter(alone, "straight")
    rewriter.set_output_structure(Leaf(straight.output))
    erase_dead(alone, rewriter)
    before, after = context.measure([replace(each, samples=dict(inputs)) for each in (alone, program)])
    return after / before
