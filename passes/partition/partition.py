"""partition: one graph in stages of equal time, for devices that work at the same time.

Units that no cut divides (see `units`) are shared out over stages so that the slowest one, sending included, is as fast
as can be (see `problem`, `search`). Each stage becomes a graph of the Program; run one after the other they are the
Program.

Not handled: Programs that have stages already; stages that run side by side; a stage on several devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import output_of
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.stages import stage_graphs
from burnish.passes.partition.devices import Device
from burnish.passes.partition.gantt import write_timelines
from burnish.passes.partition.manual import by_hand
from burnish.passes.partition.problem import Array, Problem
from burnish.passes.partition.schedules import Timeline, simulate
from burnish.passes.partition.search import Found, Objective, cost_of, lower_bound, search
from burnish.passes.partition.seconds import modeled, with_profile
from burnish.passes.partition.units import Units, units_of

__all__ = ["Partition"]

# A backward pass has two products where the forward pass has one.
_BACKWARD = 2.0
_FEWEST_INTERLEAVED = 4


@dataclass(frozen=True, kw_only=True)
class Partition(Pass):
    """Cut a Program into stages.

    Attributes:
        stages: how many; 2 where neither this, nor devices, nor cuts are given.
        devices: what stages run on, one for each, or one for all: `Device`s, or texts as in "memory=8G flops=10T
            bandwidth=500G".
        cuts: stages by hand, as in "embed + layers 0-3 | 4-7 | 8-11 + head"; see `manual`.
        objective: throughput: the slowest stage is to be fast; latency: all together; memory: the largest is to be
            small.
        times: seconds of operators by the cost model, or measured on the chosen backend.
        bandwidth: bytes per second from a stage to the next.
        latency: seconds that every transfer takes besides.
        tied: a constant that several stages read is copied, or keeps all that reads it together.
        micro_batches: for the timelines.
        timeline: a file for the timelines of the schedules: .svg or .txt.
    """

    name: ClassVar[str] = "partition"
    numerics: ClassVar[Numerics] = Exact()
    stages: int | None = None
    devices: tuple[str, ...] = ()
    cuts: str = ""
    objective: Objective = "throughput"
    times: Literal["model", "measured"] = "model"
    bandwidth: float = 1e10
    latency: float = 1e-5
    tied: Literal["copy", "together"] = "copy"
    micro_batches: int = 8
    timeline: str = ""

    def __post_init__(self) -> None:
        """Write devices as texts, and check all options.

        Raises:
            OptionError: one has an unusable value.
        """
        if isinstance(self.devices, (list, tuple)):
            texts = tuple(str(each) if isinstance(each, Device) else each for each in self.devices)
            object.__setattr__(self, "devices", texts)
        super().__post_init__()
        for each in self.devices:
            Device.parse(each)
        if self.stages is not None and self.stages < 2:
            raise OptionError(f"pass 'partition': option 'stages' must be 2 or more, but is {self.stages}")
        if self.cuts and (self.stages is not None or self.objective != "throughput"):
            raise OptionError("pass 'partition': option 'cuts' says where, so that stages and objective say nothing")
        if self.stages is not None and len(self.devices) not in (0, 1, self.stages):
            raise OptionError(
                f"pass 'partition': {self.stages} stages need {self.stages} devices, or one for all, not"
                f" {len(self.devices)}"
            )
        if not self.cuts and self.stages is None and len(self.devices) == 1:
            raise OptionError("pass 'partition': one device is one stage: say how many with stages=")
        for name, least in (("bandwidth", 1.0), ("latency", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise OptionError(
                    f"pass 'partition': option {name!r} must be a number, {least:g} or more, but is {value:g}"
                )
        if self.cuts and "|" not in self.cuts:
            raise OptionError(
                f"pass 'partition': option 'cuts' has one stage alone: put | between stages: {self.cuts!r}"
            )
        if self.micro_batches < 1:
            raise OptionError(
                f"pass 'partition': option 'micro_batches' must be 1 or more, but is {self.micro_batches}"
            )
        if self.timeline and Path(self.timeline).suffix not in (".svg", ".txt"):
            raise OptionError(f"pass 'partition': option 'timeline' must be .svg or .txt, but is {self.timeline!r}")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: the Program cannot be cut so, or memory does not suffice.
            InputError: it has dynamic sizes and no samples.
            BackendError: times are to be measured, and there is no backend.
        """
        if len(program.graphs) > 1:
            raise OptionError(f"pass 'partition': the program has stages: {', '.join(program.graphs)}")
        (graph,) = program.graphs.values()
        outputs: dict[str, fx.Node] = output_of(graph).args[0]  # type: ignore[assignment]
        same = [name for name in outputs if name in program.signature.input_names]
        if same:
            raise OptionError(
                f"pass 'partition': {same[0]!r} is an input and another output, and values go from stage to stage by"
                " name: give the output another name"
            )
        units = units_of(program, self.tied == "together")
        problem = self.problem(program, units, context)
        with working("partition: looking for the best cuts", context.progress):
            found = self._by_hand(units, problem) if self.cuts else self._searched(problem, context)
        names = [f"stage{index + 1}" for index in range(len(found.plan.stages))]
        parts = {
            name: {node for unit in stage for node in units.members[unit]}
            for name, stage in zip(names, found.plan.stages, strict=True)
        }
        with rewriter.rewrite("partition"):
            rewriter.set_stages(stage_graphs(program, parts))
        context.notes += self._told(found, units)
        timelines = self._timelines(found)
        bubbles = ", ".join(f"{name} {each.bubble:.1%}" for name, each in timelines.items())
        context.notes.append(f"partition: idle with {self.micro_batches} micro-batches: {bubbles}")
        if self.timeline:
            write_timelines(Path(self.timeline), timelines)

    def problem(self, program: Program, units: Units, context: Context) -> Problem:
        """Return the problem in numbers.

        Raises:
            OptionError: there are fewer units than stages, or devices do not go with stages.
            BackendError: times are to be measured, and there is no backend.
        """
        devices = [Device.parse(each) for each in self.devices] or [Device()]
        count = self.cuts.count("|") + 1 if self.cuts else self.stages or max(len(devices), 2)
        devices = devices * count if len(devices) == 1 else devices
        if len(devices) != count:
            raise OptionError(f"pass 'partition': {count} stages need {count} devices, or one for all")
        if count > len(units.members):
            most = len(units.members)
            remedy = f"stages={most} is the most" if most > 1 else "it cannot be cut"
            if self.tied == "together":
                remedy += " with tied=together, which keeps all that reads a weight, and what lies between, in one part"
            raise OptionError(
                f"pass 'partition': {count} stages are wanted, but the model has {most} part{'s' * (most > 1)} to share"
                f" out: {remedy}"
            )
        kinds = list(dict.fromkeys(devices))
        profile = context.profile(program) if self.times == "measured" else None
        nodes = [node for members in units.members for node in members]
        starts = np.cumsum([0, *(len(members) for members in units.members)])[:-1]

        def seconds(device: Device) -> Array:
            found = modeled(nodes, units.costs, device)
            return with_profile(nodes, found, profile) if profile is not None else found

        working_bytes = np.array(
            [
                max(
                    (
                        estimated(units.costs[node].figures.peak_activation_bytes)
                        for node in members
                        if node in units.costs
                    ),
                    default=0,
                )
                for members in units.members
            ],
            dtype=float,
        )
        return Problem(
            np.stack([np.add.reduceat(seconds(kind), starts) for kind in kinds]),
            working_bytes,
            units.values,
            units.weights,
            tuple(kinds.index(each) for each in devices),
            tuple(each.memory for each in kinds),
            self.bandwidth,
            self.latency,
        )

    def _searched(self, problem: Problem, context: Context) -> Found:
        found = search(problem, self.objective, context.seed)
        if found is None:
            raise OptionError(f"pass 'partition': memory does not suffice: {_needed(problem, context.seed)}")
        return found

    def _by_hand(self, units: Units, problem: Problem) -> Found:
        plan = problem.plan(by_hand(units, problem.inputs, self.cuts))
        for index, (used, kind) in enumerate(zip(plan.memory, problem.devices, strict=True)):
            if used > problem.memory[kind]:
                raise OptionError(
                    f"pass 'partition': stage {index + 1} of 'cuts' needs memory={_amount(used)}, but its device has"
                    f" {_amount(problem.memory[kind])}"
                )
        best = search(problem, self.objective)
        value, bound = cost_of(plan, self.objective), best.bound if best else lower_bound(problem, self.objective)
        return Found(plan, value, bound, optimal=value <= bound)

    def _told(self, found: Found, units: Units) -> list[str]:
        plan = found.plan
        notes = []
        for index, stage in enumerate(plan.stages):
            operators = sum(len(units.members[unit]) for unit in stage)
            sending = (
                f", {_time(plan.send[index])} sending {_amount(plan.crossing[index])}B" if plan.send[index] else ""
            )
            notes.append(
                f"partition: stage{index + 1} has {operators} operators:"
                f" {_time(plan.compute[index])} computing{sending}; {_amount(plan.memory[index])}B of memory"
            )
        what = {"throughput": "slowest stage", "latency": "all stages", "memory": "largest stage"}[self.objective]
        write = _time if self.objective != "memory" else lambda value: f"{_amount(value)}B"
        known = (
            "which no plan betters"
            if found.optimal
            else f"at most {found.gap:.1%} above the best plan, which takes {write(found.bound)} or more"
        )
        notes.append(f"partition: {what} {write(found.value)}, {known}")
        return notes

    def _timelines(self, found: Found) -> dict[str, Timeline]:
        """Return the timelines of the schedules: a micro-batch is a part of the batch."""
        plan, count = found.plan, self.micro_batches
        forward, send = ([each / count for each in times] for times in (plan.compute, plan.send))
        backward = [_BACKWARD * each for each in forward]
        timelines = {
            "inference": simulate("gpipe", forward, send, count),
            "gpipe": simulate("gpipe", forward, send, count, backward),
            "1f1b": simulate("1f1b", forward, send, count, backward),
        }
        stages = len(plan.stages)
        if stages >= _FEWEST_INTERLEAVED and stages % 2 == 0 and count % max(1, count // (stages // 2)) == 0:
            timelines[f"interleaved on {stages // 2} devices"] = simulate(
                "interleaved", forward, send, count, backward, stages // 2
            )
        return timelines


def _needed(problem: Problem, seed: int) -> str:
    """Return what memory would do."""
    free = Problem(
        problem.times, problem.working, problem.values, problem.weights, problem.devices,
        (math.inf,) * len(problem.memory), problem.bandwidth, problem.latency,
    )  # fmt: skip
    least = search(free, "memory", seed)
    assert least is not None
    unit = max(problem.memory_of([each]) for each in range(problem.units))
    return (
        f"{len(problem.devices)} stages fit with memory={_amount(least.value)} each, none with less than"
        f" {_amount(unit)}"
    )


def _amount(value: float) -> str:
    """Return a number of bytes in a form that `Device.parse` reads, rounded up."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{math.ceil(value / size * 1000) / 1000:g}{unit}"
    return f"{math.ceil(value) if math.isfinite(value) else value}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
