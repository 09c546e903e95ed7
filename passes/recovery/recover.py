"""recover: trains a Program, to win back what pruning, sparsity or integers cost, in place of a training script.

By default the Program learns to give what the one gives that the pipeline started from, on unlabelled data. Weights,
biases and factors of products are trained; masks stay masks, integers stay on their grids (see `compiler.trainable`),
tables, positions and statistics of attention stay what they are.

Of a Program with exits every head learns, from all samples, what the model's own is to say (joint training: BranchyNet,
Teerapittayanon et al., ICPR 2016).

Not handled: updates of buffers (caches) have no effect on the next batch; devices other than the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from burnish.compiler.constant_uses import is_parameter, uses_of
from burnish.compiler.context import Context
from burnish.compiler.data import readable_again
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.trainable import Trainable
from burnish.passes.exits.straight import Straight, straightened
from burnish.passes.recovery.batches import Batches
from burnish.passes.recovery.checkpoints import Checkpoints
from burnish.passes.recovery.losses import Distance, TaskLoss
from burnish.passes.recovery.regrow import Regrow, Regrowing
from burnish.passes.recovery.teachers import Teacher, Weighting
from burnish.passes.recovery.training import Result, Settings, Training

__all__ = ["Recover"]

_STEPS = 300
_RATES = {"adamw": 1e-3, "sgd": 0.05}


@dataclass(frozen=True, kw_only=True)
class Recover(Pass):
    """Train the Program.

    Attributes:
        steps: batches to train on; 300 where neither this nor `epochs` is given.
        epochs: times to read the data, in place of `steps`.
        loss: of the task, on pairs (inputs, targets): cross-entropy or mse on the first output; in Python also a
            function of (outputs, targets). none: teachers alone.
        distill: how outputs are held to those of teachers: kl, the divergence of chances over the last dimension; mse;
            none.
        teachers: Programs or modules, in Python; where there are none, the Program that the pipeline started from.
        weighting: how several teachers count for a sample: equal, confidence or agreement.
        temperature: of chances in kl.
        balance: the part of distillation where there is a loss too, from 0 to 1.
        features: names of nodes whose values are to stay those of the first teacher.
        optimizer: adamw, or sgd with momentum .9.
        learning_rate: at its height; .001 for adamw and .05 for sgd where it is not given.
        weight_decay: of the optimizer.
        schedule: cosine, after a warm-up over a tenth of the steps, or constant.
        precision: bfloat16 computes under autocast.
        statistics: batch norms normalize by their batches and update what they know (updated), or not (frozen).
        segments: parts of the graph whose inner values are computed twice, to need less memory.
        freeze: patterns as in a shell of constants that stay.
        only: patterns of constants that alone change, `exit*` the heads of exits; where there are none, all may.
        regrow: none; rigl or set: masked weights take the places of the least ones.
        regrow_every: steps from one such move to the next.
        regrow_part: of the weights of a layer, how many move at first.
        checkpoint: a folder for checkpoints, to go on from after a kill.
        data: batches, pairs where a loss is needed; `calibration` of the context where there are none.
    """

    name: ClassVar[str] = "recover"
    numerics: ClassVar[Numerics] = Lossy()
    steps: int | None = None
    epochs: int | None = None
    loss: TaskLoss | None = None
    distill: Distance | None = "kl"
    teachers: tuple[Any, ...] = field(default=(), compare=False)
    weighting: Weighting = "equal"
    temperature: float = 2.0
    balance: float = 0.5
    features: tuple[str, ...] = ()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    precision: Literal["float32", "bfloat16"] = "float32"
    statistics: Literal["updated", "frozen"] = "updated"
    segments: int = 1
    freeze: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    regrow: Regrow | None = None
    regrow_every: int = 50
    regrow_part: float = 0.3
    checkpoint: str = ""
    data: Iterable[Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.loss) and self.loss not in (None, "cross-entropy", "mse"):
            self._refuse("loss", "must be none, cross-entropy, mse or, in Python, a function")
        for name, least in (("steps", 1), ("epochs", 1), ("segments", 1), ("regrow_every", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                self._refuse(name, f"must be {least} or more")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                self._refuse(name, "must be above 0")
        for name in ("balance", "regrow_part"):
            if not 0 <= getattr(self, name) <= 1:
                self._refuse(name, "must be from 0 to 1")
        if not 0 <= self.weight_decay < math.inf:
            self._refuse("weight_decay", "must be 0 or more")
        if self.steps is not None and self.epochs is not None:
            raise OptionError("pass 'recover': give steps or epochs, not both")
        if self.loss is None and self.distill is None and not self.features:
            raise OptionError("pass 'recover': loss and distill are both none: nothing would be trained")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: a pattern of `freeze` or `only` matches nothing, or a node of `features`.
            InputError: there are no data, they do not fit, or the loss is not finite.
        """
        data = readable_again(self._data(context), self.name, "data")
        straight = straightened(program)
        if straight is not None:
            program = straight.program
        frozen = self._frozen(program)
        module = Trainable(program, frozen=frozen, statistics=self.statistics == "updated", segments=self.segments)
        if not module.trained:
            context.notes.append("recover found nothing to train")
            return
        self._check_features(module)
        teachers = self._teachers(program, context)
        batches = Batches(program, data, context.seed, paired=self.loss is not None)
        steps = self._steps(batches)
        regrowing = None
        if self.regrow is not None:
            regrowing = Regrowing(module, self.regrow, self.regrow_every, self.regrow_part, steps)
        checkpoints = None
        if self.checkpoint:
            # Text has no addresses of Python's objects, so that another process finds the file.
            text = f"{replace(self, checkpoint='', data=None, teachers=())} {steps} {context.seed}"
            followed = [teacher.model for teacher in teachers]
            checkpoints = Checkpoints(Path(self.checkpoint), program, followed, text)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(context.seed)
            result = Training(
                module, self._settings(steps, straight), teachers, batches, regrowing, checkpoints, context.progress
            ).run()
        context.notes.append(_told(steps, result, self.loss == "cross-entropy"))
        trained = module.constants()
        with rewriter.rewrite("recover"):
            rewriter.replace_constants(trained if regrowing is None else trained | regrowing.masks)

    def _refuse(self, name: str, wanted: str) -> None:
        raise OptionError(f"pass 'recover': option {name!r} {wanted}, but is {getattr(self, name)!r}")

    def _data(self, context: Context) -> Any:
        if self.data is not None:
            return self.data
        if context.calibration is None:
            raise InputError(
                "pass 'recover' needs training data: give Recover(data=...), or calibration=, an iterable of batches;"
                " --calibration FILE on the command line"
            )
        return context.calibration

    def _frozen(self, program: Program) -> frozenset[str]:
        names = [name for name, uses in uses_of(program).items() if is_parameter(uses)]
        for pattern in (*self.freeze, *self.only):
            if not any(fnmatchcase(name, pattern) for name in names):
                some = ", ".join(names[:5]) or "none"
                raise OptionError(f"pass 'recover': no constant matches {pattern!r}: there are {some}")

        def matches(name: str, patterns: tuple[str, ...]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        return frozenset(
            name
            for name in program.constants
            if matches(name, self.freeze) or (self.only and not matches(name, self.only))
        )

    def _check_features(self, module: Trainable) -> None:
        names = module.names()
        missing = [name for name in self.features if name not in names]
        if missing:
            raise OptionError(
                f"pass 'recover': option 'features': the program has no node {missing[0]!r}: `burnish capture` prints"
                " them"
            )

    def _teachers(self, program: Program, context: Context) -> list[Teacher]:
        if self.distill is None and not self.features:
            return []
        given = list(self.teachers) if isinstance(self.teachers, (tuple, list)) else [self.teachers]
        if not given:
            original = context.reference or program
            straight = straightened(original)
            whole = original if straight is None else straight.program
            return [Teacher(whole, program, self.features, "the original program")]
        return [
            Teacher(each, program, self.features if index == 0 else (), f"teacher {index + 1}")
            for index, each in enumerate(given)
        ]

    def _steps(self, batches: Batches) -> int:
        if self.epochs is None:
            return self.steps or _STEPS
        count = batches.in_epoch()
        if not count:
            raise InputError("pass 'recover' needs training data, and there are none: the data are empty")
        return self.epochs * count

    def _settings(self, steps: int, straight: Straight | None) -> Settings:
        return Settings(
            heads=() if straight is None else (straight.output, *(head.logits for head in straight.heads)),
            steps=steps,
            loss=self.loss,
            distance=self.distill,
            temperature=self.temperature,
            balance=self.balance,
            weighting=self.weighting,
            features=self.features,
            optimizer=self.optimizer,
            learning_rate=_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            precision=self.precision,
        )


def _told(steps: int, result: Result, has_labels: bool) -> str:
    if math.isnan(result.first):
        return f"recover: all {steps} steps were done before, in a process that the checkpoint is of"
    metric = ""
    if result.metric is not None:
        metric = f"; {result.metric:.1%} of the last samples are {'right' if has_labels else 'as its teachers say'}"
    resumed = f", {result.resumed} of them before" if result.resumed else ""
    return f"recover: {steps} steps{resumed}, loss {result.first:.4g} -> {result.last:.4g}{metric}"
