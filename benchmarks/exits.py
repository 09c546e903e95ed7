"""What early exits gain and lose, on a ResNet for Fashion-MNIST and on MiniLM for sentences.

python -m benchmarks.exits [--only fashion,sentiment] [--keep FOLDER] [--curves FOLDER] [--sections ...] [--blocks 9]

layers: how right a head at each place is. loss: thresholds, chosen by calibrate-exits for at most a point of accuracy
less with 95% confidence, where samples leave, and what is lost on samples that nothing was chosen on. time: the ONNX
backend with 2 threads, with exits against the same weights without: as calibrated, and when nobody leaves; with
mode=whole-batch at 1 and 16 too; a call is the same 512 samples in batches, so that it has easy and hard ones.
guarantee: 200 random splits of the held-out samples into those that calibrate and those that test.

Fashion-MNIST is the Debian package dataset-fashion-mnist; the sentences are in the source package of vaderSentiment
(see `benchmarks.trained.sentiment`). Heads are trained first, which takes about half an hour, unless --keep has them.
"""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import burnish
from benchmarks.comparison import THREADS
from benchmarks.exits_networks import NETWORKS, Batch, Network
from benchmarks.exits_splits import violations
from benchmarks.timing import Interleaved, interleave
from burnish import Context, Pipeline, Program
from burnish.compiler.data import calibration_pairs
from burnish.compiler.rewriter import Rewriter
from burnish.passes.exits import CalibrateExits
from burnish.passes.exits.evaluate import Evaluation, Metric, evaluate
from burnish.passes.exits.straight import straightened
from burnish.passes.exits.thresholds import Setting

__all__ = ["Bench", "main"]

_MAX_DROP, _DELTA = 0.01, 0.05
_BATCHES = (1, 8, 64)
_WHOLE_BATCH = 16
_TIMED = 512
_EVALUATED = 50
_SPLITS = 200
_BACKEND = f"onnx{{threads={THREADS}}}"


class Bench:
    """A network, its exits, and what is known of them.

    Attributes:
        name: of the network.
        network: with heads at all places.
        blocks: of timing.
        calibrating: numbers of the held-out samples that thresholds are chosen on.
        testing: numbers of the others.
    """

    def __init__(self, name: str, keep: Path, curves: Path | None, blocks: int) -> None:
        self.name, self.curves, self.blocks = name, curves, blocks
        self.network: Network = NETWORKS[name](keep)
        numbers = torch.arange(len(self.network.held_out.classes))
        self.calibrating = numbers[: self.network.calibrating]
        self.testing = numbers[self.network.calibrating :]

    @functools.cached_property
    def everything(self) -> Evaluation:
        """What heads at all places say of all held-out samples."""
        return self._evaluated(self.network.program, len(self.network.held_out.classes))

    @functools.cached_property
    def used(self) -> Evaluation:
        """What the exits that are used say of them: the same, for other costs."""
        rows = list(self.network.used)
        every = self.everything
        costs = self._evaluated(self.with_exits("per-sample"), 1).costs
        return replace(every, scores=every.scores[rows], classes=every.classes[rows], costs=costs)

    @functools.cached_property
    def whole(self) -> Program:
        """The network without exits, with the weights that it was trained to beside them."""
        return _with_constants(self.network.alone, self.network.program, {})

    @functools.cached_property
    def calibrated(self) -> tuple[Program, list[str]]:
        """The network with the exits that are used, calibrated, and the notes of that."""
        curve = str(self.curves / f"exits-{self.name}.svg") if self.curves else ""
        order = self.network.held_out.order(self.calibrating)
        context = Context(calibration=self._pairs(self.calibrating[order]), progress=False)
        program = Pipeline([CalibrateExits(max_drop=_MAX_DROP, delta=_DELTA, curve=curve)]).run(
            self.with_exits("per-sample"), context
        )
        return program, context.notes

    def with_exits(self, mode: str) -> Program:
        """Return the network with the exits that are used, not calibrated."""
        used = self.network.used
        inserted = Pipeline([self.network.insert(used, mode)]).run(self.whole, Context(progress=False))
        names = {f"exit{index + 1}": f"exit{place + 1}" for index, place in enumerate(used)}
        return _with_constants(inserted, self.network.program, names)

    @property
    def limits(self) -> dict[str, torch.Tensor]:
        """The thresholds of the exits that are used, by name."""
        program, _ = self.calibrated
        return {name: value for name, value in program.constants.items() if name.endswith(".threshold")}

    def compiled(self, program: Program) -> burnish.Compiled:
        """Compile for the backend that is timed."""
        return burnish.compile(program, "default", backend=_BACKEND, progress=False)

    def batches(self, chosen: torch.Tensor, size: int) -> list[Batch]:
        """Return the inputs of samples."""
        return [self.network.held_out.batch(part) for part in torch.split(chosen, size)]

    def predicted(self, program: Program, chosen: torch.Tensor) -> torch.Tensor:
        """Return the classes that the compiled Program gives to samples."""
        model, order = self.compiled(program), self.network.held_out.order(chosen)
        found = torch.cat([model(*batch).argmax(-1) for batch in self.batches(chosen[order], _EVALUATED)])
        return found[order.argsort()]

    def _evaluated(self, program: Program, samples: int) -> Evaluation:
        straight = straightened(program)
        assert straight is not None
        # Like samples together: little of a batch of sentences is padding then.
        order = self.network.held_out.order(torch.arange(samples))
        context = Context(calibration=self._pairs(order))
        found = evaluate(straight, calibration_pairs(program, context, samples, "the benchmark"))
        back = order.argsort()
        return replace(
            found,
            scores=found.scores[:, back.numpy()],
            classes=found.classes[:, back],
            own=found.own[back],
            labels=(self.network.held_out.classes[:samples],),
        )

    def _pairs(self, chosen: torch.Tensor) -> list[tuple[Batch, torch.Tensor]]:
        held_out = self.network.held_out
        return [(held_out.batch(part), held_out.classes[part]) for part in torch.split(chosen, _EVALUATED)]


def layers(bench: Bench) -> None:
    """How right heads are."""
    network, found = bench.network, bench.everything
    labels = network.held_out.classes
    before = bench.predicted(network.alone, torch.arange(len(labels)))
    print(f"\n| {bench.name}: head behind | FLOPs | accuracy |\n|---|---|---|")
    for place, classes, cost in zip(
        (*network.places, "the end"), (*found.classes, found.own), found.costs, strict=True
    ):
        print(f"| {place} | {cost:.1%} | {_part(classes == labels)} |")
    print(f"| the end, trained without exits | 100.0% | {_part(before == labels)} |\n", flush=True)


def loss(bench: Bench) -> None:
    """What is lost, and where samples leave."""
    network = bench.network
    program, notes = bench.calibrated
    for note in notes:
        print(f"    {note}")
    labels = network.held_out.classes[bench.testing]
    answers = bench.used.answers("accuracy").part(bench.testing.numpy())
    setting = Setting(tuple(float(each) for each in bench.limits.values()))
    parts = np.bincount(answers.leave_by(setting), minlength=len(network.used) + 1) / len(labels)
    print(f"\n| {bench.name}: exit behind | threshold | samples of {len(labels):,} that leave |\n|---|---|---|")
    for place, limit, part in zip(network.used, setting.limits, parts, strict=False):
        print(f"| {network.places[place]} | {limit:.4f} | {part:.1%} |")
    print(f"| the end | | {parts[-1]:.1%} |\n")
    exits, whole = (bench.predicted(each, bench.testing) for each in (program, bench.whole))
    lost = (whole == labels).double() - (exits == labels).double()
    print(
        f"{answers.cost(setting):.1%} of the FLOPs; accuracy {_part(whole == labels)} -> {_part(exits == labels)}: lost"
        f" {100 * float(lost.mean()):.2f} +- {_error(lost):.2f} points; agreement {_part(exits == whole)}\n",
        flush=True,
    )


def time(bench: Bench) -> None:
    """Time, as a part of the whole model's, and how many times as fast that is."""
    calibrated = {
        "per-sample": bench.calibrated[0],
        "whole-batch": _replaced(bench.with_exits("whole-batch"), bench.limits),
    }
    never = {name: torch.tensor(1.0) for name in bench.limits}
    exits = {mode: bench.compiled(program) for mode, program in calibrated.items()}
    alone = {mode: bench.compiled(_replaced(program, never)) for mode, program in calibrated.items()}
    whole = bench.compiled(bench.whole)
    print(f"\n| {bench.name}: batch | mode | whole, ms a batch | with exits | times as fast | when nobody leaves |")
    print("|---|---|---|---|---|---|")
    chosen = bench.testing[:_TIMED]
    for size in _BATCHES:
        modes = tuple(calibrated) if size == 1 else ("per-sample",)
        named = {f"{mode}, exits": exits[mode] for mode in modes} | {f"{mode}, never": alone[mode] for mode in modes}
        times = _timed({"whole": whole, **named}, bench.batches(chosen, size), bench.blocks)
        for mode in modes:
            left = times[f"{mode}, exits"]
            print(
                f"| {size} | {mode} | {times['whole'].median * 1e3 * size / len(chosen):.2f} | {_ratio(left)} |"
                f" {1 / left.ratio:.2f} (goal {bench.network.goal}) | {_ratio(times[f'{mode}, never'])} (goal 1.03) |",
                flush=True,
            )
    # The first one is what the others are compared with.
    both = {"whole-batch": exits["whole-batch"], "exits": exits["per-sample"], "whole": whole}
    times = _timed(both, bench.batches(chosen, _WHOLE_BATCH), bench.blocks)
    print(
        f"\nAt batch {_WHOLE_BATCH} per-sample takes {_ratio(times['exits'])} of the time of whole-batch, and the whole"
        f" model {_ratio(times['whole'])}.\n",
        flush=True,
    )


def guarantee(bench: Bench) -> None:
    """How often more is lost than the bound."""
    print(f"\n| {bench.name}: bound on | FLOPs | lost, points | splits in which the test part loses more |", end="")
    print(" splits in which all held-out samples do |\n|---|---|---|---|---|")
    metrics: tuple[Metric, ...] = ("accuracy", "agreement")
    for metric in metrics:
        lost, agreement = (bench.used.answers(each) for each in (metric, metrics[1]))
        found = violations(lost, agreement, bench.network.calibrating, _MAX_DROP, _DELTA, _SPLITS)
        counts = f"{found.on_test:.1%} of {_SPLITS} | {found.on_all:.1%} |"
        print(f"| {metric} | {found.cost:.1%} | {100 * found.lost:.2f} | {counts}", flush=True)
    print()


def _with_constants(program: Program, source: Program, names: Mapping[str, str]) -> Program:
    """Return a Program with the constants of another one; `names` says which modules have other names there."""

    def held(name: str) -> str:
        module, _, rest = name.partition(".")
        return f"{names[module]}.{rest}" if module in names else name

    # What nothing reads is gone there: counters of batches.
    known = {name: held(name) for name in program.constants if held(name) in source.constants}
    return _replaced(program, {name: source.constants[other] for name, other in known.items()})


def _replaced(program: Program, values: Mapping[str, torch.Tensor]) -> Program:
    made = program.copy()
    rewriter = Rewriter(made, "benchmark")
    with rewriter.rewrite("constants"):
        rewriter.replace_constants(values)
    return made


def _timed(models: dict[str, burnish.Compiled], batches: Sequence[Batch], blocks: int) -> dict[str, Interleaved]:
    def all_of(model: burnish.Compiled) -> Callable[[], None]:
        artifact = model.artifact

        def call() -> None:
            for batch in batches:
                artifact(*batch)

        return call

    return interleave({name: all_of(model) for name, model in models.items()}, blocks=blocks)


def _error(values: torch.Tensor) -> float:
    return float(100 * values.double().std() / len(values) ** 0.5)


def _part(right: torch.Tensor) -> str:
    return f"{100 * float(right.double().mean()):.2f} +- {_error(right):.2f}"


def _ratio(time: Interleaved) -> str:
    return f"{time.ratio:.3f} +- {time.spread:.3f}"


_SECTIONS: dict[str, Callable[[Bench], None]] = {"layers": layers, "loss": loss, "time": time, "guarantee": guarantee}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, comma-separated")
    parser.add_argument("--sections", default=",".join(_SECTIONS), help="comma-separated")
    parser.add_argument("--keep", default="", help="keep trained networks here, and take those that are there")
    parser.add_argument("--curves", default="", help="write curves of accuracy against cost into this folder")
    parser.add_argument("--blocks", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only.split(","):
            keep = Path(chosen.keep or folder)
            bench = Bench(name, keep, Path(chosen.curves) if chosen.curves else None, chosen.blocks)
            for section in chosen.sections.split(","):
                print(f"## {name}, {section}", flush=True)
                _SECTIONS[section](bench)


if __name__ == "__main__":
    main()
