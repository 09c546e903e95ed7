"""How good partitions are, how long they take, and whether schedules on paper are those of processes.

python -m benchmarks.partition [--only plans,scale,processes] [--filter bert] [--stages 2,4,8,16]

plans: the slowest stage of full-size networks, against a lower bound, and against stages of equally many operators and
of equally many parameters. scale: 100,000 units in 1,000 stages. processes: ResNet-50 in two processes over gloo, one
thread each, inference and training steps, against what `simulate` makes of the times of the stages alone.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import burnish
from benchmarks.models.entry import Entry
from benchmarks.models.full_size import full_size
from benchmarks.models.images import UNet
from burnish import Context, Pipeline
from burnish.passes.partition.partition import Partition
from burnish.passes.partition.problem import Plan, Problem, Value
from burnish.passes.partition.schedules import simulate
from burnish.passes.partition.search import search
from burnish.passes.partition.units import Units, units_of

__all__ = ["main"]

_MODELS = ("resnet-50", "efficientnet-b0", "u-net", "swin-t", "bert-base", "gpt-2", "whisper-tiny-encoder")
_UNITS, _STAGES = 100_000, 1_000
_MICRO_BATCHES, _PICTURES = 8, 2
_STEPS = 7
_DEFAULT = "canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce"


def plans(chosen: argparse.Namespace) -> None:
    """Print bottlenecks."""
    print("\n| model | stages | slowest stage | above the bound | / equal operators | / equal parameters |")
    print("|---|---|---|---|---|---|")
    entries = {each.name: each for each in (*full_size(), Entry("u-net", "cnn", UNet, _pictures))}
    for name in (each for each in _MODELS if chosen.filter in each):
        entry = entries[name]
        program = Pipeline.parse(_DEFAULT).run(burnish.capture(entry.model(), entry.inputs_for(1)))
        units = units_of(program)
        for count in map(int, chosen.stages.split(",")):
            problem = Partition(stages=count).problem(program, units, Context())
            found = search(problem, "throughput")
            assert found is not None
            others = [
                _even(problem, weights).bottleneck
                for weights in ([float(len(each)) for each in units.members], _parameters(units))
            ]
            gap = "optimal" if found.optimal else f"{found.gap:.1%}"
            ratios = " | ".join(f"{found.value / each:.3f}" for each in others)
            print(f"| {name} | {count} | {found.value * 1e3:.3f} ms | {gap} | {ratios} |", flush=True)


def _pictures(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 3, 224, 224)}


def _parameters(units: Units) -> list[float]:
    """Return the bytes of the weights that every unit reads first."""
    found = [0.0] * len(units.members)
    for weight in units.weights:
        found[weight.readers[0]] += weight.bytes
    return found


def _even(problem: Problem, weights: Sequence[float]) -> Plan:
    """Return the plan whose stages have equal shares of the weights, in the given order."""
    stages = len(problem.devices)
    sums = np.cumsum(weights)
    ends = [int(np.searchsorted(sums, sums[-1] * (index + 1) / stages)) + 1 for index in range(stages)]
    # No stage is empty.
    for index in range(stages):
        least = ends[index - 1] + 1 if index else 1
        ends[index] = min(max(ends[index], least), problem.units - (stages - 1 - index))
    ends[-1] = problem.units
    return problem.plan([list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)])


def scale(_: argparse.Namespace) -> None:
    """Print the time for a large graph."""
    generator = np.random.default_rng(0)
    values = tuple(
        Value(unit, tuple(sorted({unit + 1, min(_UNITS, unit + int(generator.integers(1, 20)))})), float(size))
        for unit, size in enumerate(generator.integers(1, 5000, _UNITS))
    )
    problem = Problem(generator.random((1, _UNITS)), np.ones(_UNITS), values, (), (0,) * _STAGES, (np.inf,), 1e6, 1e-3)
    start = time.perf_counter()
    found = search(problem, "throughput")
    assert found is not None
    seconds = time.perf_counter() - start
    print(f"\n{_UNITS:,} units in {_STAGES:,} stages: {seconds:.1f} s, {found.gap:.1%} above the bound", flush=True)


def processes(_: argparse.Namespace) -> None:
    """Print times of steps in two processes, and on paper."""
    entry = next(each for each in full_size() if each.name == "resnet-50")
    inputs = entry.inputs_for(_PICTURES)
    print("\n| ResNet-50, 2 processes | measured | on paper | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        burnish.compile(
            entry.model(), "default,partition{stages=2}", inputs=inputs, backend="stages", progress=False
        ).save(Path(folder) / "resnet")  # fmt: skip
        for schedule, trains in (("gpipe", False), ("gpipe", True), ("1f1b", True)):
            context = torch.multiprocessing.get_context("spawn")
            results = context.Queue()
            workers = [
                context.Process(target=_work, args=(rank, folder, schedule, trains, results)) for rank in range(2)
            ]
            for each in workers:
                each.start()
            found = sorted(results.get() for _ in workers)
            for each in workers:
                each.join()
            measured = max(each[1] for each in found)
            forward, backward = ([each[index] for each in found] for index in (2, 3))
            paper = simulate(
                schedule,  # type: ignore[arg-type]
                forward, [found[0][4], 0.0], _MICRO_BATCHES, backward if trains else ()
            ).seconds  # fmt: skip
            kind = "a training step" if trains else "inference"
            print(
                f"| {kind}, {schedule} | {measured * 1e3:.0f} ms | {paper * 1e3:.0f} ms | {paper / measured:.2f} |",
                flush=True,
            )


def _work(rank: int, folder: str, schedule: Any, trains: bool, results: Any) -> None:
    import torch.distributed as dist

    from burnish.backends.stages.distributed import Worker

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/{schedule}{trains}", rank=rank, world_size=2)
    worker = Worker(Path(folder) / "resnet", schedule, _MICRO_BATCHES, _loss if trains else None)
    pictures = torch.randn(_MICRO_BATCHES * _PICTURES, 3, 224, 224)
    target = torch.zeros(len(pictures), dtype=torch.int64)

    def step() -> None:
        if trains:
            worker.step((pictures,), {}, target)
        else:
            worker.run(pictures)

    seconds = _median(step)
    (module,) = worker.modules.values()
    part = pictures[:_PICTURES]
    # What the second process works on.
    sent = [torch.empty(0)]
    if rank == 0:
        with torch.no_grad():
            sent = [module(part)]
    shape: list[Any] = [tuple(sent[0].shape)]
    dist.broadcast_object_list(shape, src=0)
    given = part if rank == 0 else torch.randn(shape[0])
    transfer = _median(lambda: _pass_on(rank, torch.zeros(shape[0])))
    dist.barrier()
    forward, backward = _alone(module, given, target[:_PICTURES], rank == 1, trains)
    results.put((rank, seconds, forward, backward, transfer))
    dist.barrier()
    dist.destroy_process_group()


def _pass_on(rank: int, value: torch.Tensor) -> None:
    import torch.distributed as dist

    dist.barrier()
    if rank == 0:
        dist.send(value, 1)
    else:
        dist.recv(value, 0)


def _alone(
    module: nn.Module, given: torch.Tensor, target: torch.Tensor, is_last: bool, trains: bool
) -> tuple[float, float]:
    """Return the seconds of a micro-batch forward, and backward, of a stage, both processes being at work."""
    if not trains:
        with torch.no_grad():
            return _median(lambda: module(given)), 0.0
    forwards, backwards = [], []
    for _ in range(_STEPS):
        value = given.clone().requires_grad_(is_last)
        start = time.perf_counter()
        result = module(value)
        loss = _loss(result, target) if is_last else result
        middle = time.perf_counter()
        loss.backward(None if is_last else torch.ones_like(result))
        backwards.append(time.perf_counter() - middle)
        forwards.append(middle - start)
    return statistics.median(forwards), statistics.median(backwards)


def _loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, target)


def _median(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


_PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"plans": plans, "scale": scale, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(_PARTS), help="parts, comma-separated")
    parser.add_argument("--filter", default="", help="only models whose name contains this")
    parser.add_argument("--stages", default="2,4,8,16")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for part in chosen.only.split(","):
        _PARTS[part](chosen)


if __name__ == "__main__":
    main()
