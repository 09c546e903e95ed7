"""What pruning costs in accuracy and gains in time, on the ResNet trained on Fashion-MNIST.

python -m benchmarks.pruning_accuracy [--only size,curve,teachers,int8] [--steps 468] [--plot FILE] [--keep FOLDER]

size: 42% fewer parameters. curve: accuracy against latency at four ratios, for three estimates, beside Torch-Pruning
with the same training. teachers: learning from labels, from the original, and from two networks, three seeds each.
int8: pruned, quantized, and both. Scores are of the 10,000 test pictures, with the standard error of a difference.
Latency is that of the ONNX backend, everything interleaved. It needs the Debian package dataset-fashion-mnist, and
about 40 minutes: networks are trained two at a time, one thread each.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import burnish
from benchmarks.comparison import THREADS
from benchmarks.pruning_runs import Run, make
from benchmarks.timing import Interleaved, interleave
from benchmarks.trained import fashion_mnist
from benchmarks.trained.task import Task, Trained
from burnish import Program

__all__ = ["main"]

_RATIOS = (0.2, 0.4, 0.6, 0.8)
_ESTIMATES = ("l2", "taylor", "random")
_SEEDS = (0, 1, 2)
_BATCH = 8
_BLOCKS = 15
_COLORS = {"l2": "tab:blue", "taylor": "tab:green", "random": "tab:gray"}


class Bench:
    """The trained network, and networks made of it.

    Attributes:
        trained: the network with its test.
        task: its test.
        rows: what the test needs of the network.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.trained: Trained = fashion_mnist()
        self.task: Task = self.trained.tasks[0]
        self.rows = self.task.rows(self.trained.model)

    def made(self, runs: Mapping[str, Run]) -> dict[str, Program]:
        """Make networks, two at a time, but for those that are there."""
        paths = {
            name: self.folder / f"{hashlib.sha256(repr(run).encode()).hexdigest()[:16]}.burnish"
            for name, run in runs.items()
        }
        missing = [name for name in runs if not paths[name].exists()]
        with ProcessPoolExecutor(THREADS, get_context("spawn")) as pool:
            notes = pool.map(make, [runs[name] for name in missing], [paths[name] for name in missing])
            for name, note in zip(missing, notes, strict=True):
                print(f"    {name}: {note}", flush=True)
        return {name: Program.load(path) for name, path in paths.items()}

    def drop(self, model: object) -> tuple[float, float]:
        """Return by how much a network is worse, in points, and the standard error of that."""
        value, error = self.task.drop(self.task.rows(model), self.rows)
        return 100 * value, 100 * error

    def times(self, models: Mapping[str, burnish.Compiled]) -> dict[str, Interleaved]:
        """Time networks beside the original, the first one."""
        (x,) = self.trained.data
        return interleave({name: functools.partial(each, x[:_BATCH]) for name, each in models.items()}, blocks=_BLOCKS)

    def compiled(self, model: torch.nn.Module | Program, passes: str = "default") -> burnish.Compiled:
        """Compile for the ONNX backend."""
        return burnish.compile(
            model,
            passes,
            inputs=self.trained.inputs,
            backend=f"onnx{{threads={THREADS}}}",
            calibration=self.trained.calibration,
            progress=False,
        )


def size(bench: Bench, _: str) -> None:
    """42% fewer parameters."""
    program = bench.made({"pruned": Run(prune="params=0.58", steps=2 * bench.steps)})["pruned"]
    before = bench.compiled(bench.trained.model).program.parameter_count()
    after = bench.compiled(program).program.parameter_count()
    drop, error = bench.drop(program)
    print(f"\n{1 - after / before:.1%} fewer parameters: accuracy drops by {drop:.2f} +- {error:.2f} points\n")


def curve(bench: Bench, plot: str) -> None:
    """Accuracy against latency."""
    runs = {
        f"{tool}, {estimate}, {ratio}": Run(
            tool=tool,
            prune=f"ratio={ratio}" if tool == "burnish" else "",
            importance=estimate,
            ratio=ratio,
            steps=bench.steps,
        )
        for tool in ("burnish", "Torch-Pruning")
        for estimate in _ESTIMATES
        for ratio in _RATIOS
    }  # type: dict[str, Run]
    programs = bench.made(runs)
    compiled = {"original": bench.compiled(bench.trained.model)}
    compiled |= {name: bench.compiled(program) for name, program in programs.items()}
    times = bench.times(compiled)
    flops = {name: each.program.cost().at_samples().flops for name, each in compiled.items()}
    print("\n| estimate | ratio | tool | FLOPs left | time, ONNX Runtime | accuracy drop, points |")
    print("|---|---|---|---|---|---|")
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for name, run in runs.items():
        drop, error = bench.drop(programs[name])
        found.setdefault((run.tool, run.importance), []).append((times[name].ratio, drop, error))
        part = flops[name] / flops["original"]
        print(
            f"| {run.importance} | {run.ratio} | {run.tool} | {part:.1%} | {times[name].ratio:.3f} +-"
            f" {times[name].spread:.3f} | {drop:.2f} +- {error:.2f} |"
        )
    for (tool, estimate), points in found.items():
        best = min((time for time, drop, _ in points if drop <= 0.5), default=1.0)
        print(f"{tool}, {estimate}: {1 / best:.2f} times as fast within half a point")
    print()
    if plot:
        _plot(found, Path(plot))


def teachers(bench: Bench, _: str) -> None:
    """Labels alone, the original, and two networks."""
    kinds: dict[str, tuple[tuple[int, ...], str]] = {
        "labels alone": ((), "equal"),
        "the original": ((0,), "equal"),
        "two, equal": ((0, 1), "equal"),
        "two, by confidence": ((0, 1), "confidence"),
        "two, by agreement": ((0, 1), "agreement"),
    }
    runs = {
        f"{name}, seed {seed}": Run(
            prune="ratio=0.6", teachers=seeds, weighting=weighting, seed=seed, steps=bench.steps  # type: ignore[arg-type]
        )
        for name, (seeds, weighting) in kinds.items()
        for seed in _SEEDS
    }  # fmt: skip
    programs = bench.made(runs)
    print("\n| teachers | accuracy drop, points: mean over three seeds | spread |\n|---|---|---|")
    for name in kinds:
        drops = [bench.drop(programs[f"{name}, seed {seed}"])[0] for seed in _SEEDS]
        print(f"| {name} | {statistics.mean(drops):.2f} | {statistics.stdev(drops):.2f} |")
    print()


def int8(bench: Bench, _: str) -> None:
    """Pruned, quantized, both."""
    program = bench.made({"pruned": Run(prune="flops=0.4", steps=2 * bench.steps)})["pruned"]
    compiled = {
        "original": bench.compiled(bench.trained.model),
        "pruned": bench.compiled(program),
        "int8": bench.compiled(bench.trained.model, "default,quantize"),
        "pruned, int8": bench.compiled(program, "default,quantize"),
    }
    times = bench.times(compiled)
    print("\n| | time, ONNX Runtime | file | accuracy drop, points |\n|---|---|---|---|")
    for name, each in compiled.items():
        drop, error = bench.drop(each)
        time = f"{times[name].ratio:.3f} +- {times[name].spread:.3f}"
        print(f"| {name} | {time} | {each.report.artifact_bytes / 1e6:.2f} MB | {drop:.2f} +- {error:.2f} |")
    print()


def _plot(found: Mapping[tuple[str, str], Sequence[tuple[float, float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "burnish"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for (tool, estimate), points in found.items():
        ours = tool == "burnish"
        axes.errorbar(
            [time for time, *_ in points],
            [-drop for _, drop, _ in points],
            [error for *_, error in points],
            label=f"{tool}, {estimate}",
            color=_COLORS[estimate],
            linestyle="-" if ours else "--",
            marker="o" if ours else "x",
            capsize=2,
        )
    axes.set_xlabel("time in ONNX Runtime, original = 1")
    axes.set_ylabel("accuracy, points from the original")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


_SECTIONS: dict[str, Callable[[Bench, str], None]] = {"size": size, "curve": curve, "teachers": teachers, "int8": int8}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(_SECTIONS), help="sections, comma-separated")
    parser.add_argument("--steps", type=int, default=468, help="batches of 128 to train on; 468 are all pictures")
    parser.add_argument("--plot", default="", help="write the curve here, as SVG")
    parser.add_argument(
        "--keep", default="", help="keep trained networks in this folder, and take those that are there"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(chosen.keep or folder), chosen.steps)
        for name in chosen.only.split(","):
            print(f"## {name}", flush=True)
            _SECTIONS[name](bench, chosen.plot)


if __name__ == "__main__":
    main()
