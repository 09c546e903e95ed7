"""The problem of a partition in numbers: units that cannot be cut, what they cost, and the values between them.

A stage holds some of the units; stages follow one another, and a unit stands in no stage before one that it depends on
(convex stages). A value that is read in a later stage crosses every cut between: it is forwarded, once a cut, however
many read it. So what crosses a cut depends on what stands before it, and on nothing else.

    seconds of a stage  = those of its units on its device + those of sending what crosses the cut behind it
    bytes of a stage    = the weights that its units read + the most bytes that are alive while one of them runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["NONE", "Plan", "Problem", "Value", "Weight"]

Array = npt.NDArray[np.float64]
# Bytes: sums of sizes that cancel leave what floats lose.
NONE = 0.5


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that units read.

    Attributes:
        source: the unit that makes it; -1 for an input of the model.
        readers: the units that read it; the number of units stands for the outputs of the model.
        bytes: its size.
    """

    source: int
    readers: tuple[int, ...]
    bytes: float


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant.

    Attributes:
        readers: the units that read it; a stage that has any of them holds a copy.
        bytes: its size.
    """

    readers: tuple[int, ...]
    bytes: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Units by stage, and what each stage costs.

    Attributes:
        stages: the units of every stage, ascending.
        compute: seconds of computing, by stage.
        send: seconds of sending what crosses the cut behind it, by stage.
        memory: bytes, by stage.
        crossing: bytes that cross the cut behind it, by stage.
    """

    stages: tuple[tuple[int, ...], ...]
    compute: tuple[float, ...]
    send: tuple[float, ...]
    memory: tuple[float, ...]
    crossing: tuple[float, ...]

    @property
    def bottleneck(self) -> float:
        """Seconds of the slowest stage."""
        return max(a + b for a, b in zip(self.compute, self.send, strict=True))

    @property
    def latency(self) -> float:
        """Seconds of all stages, one after the other."""
        return sum(self.compute) + sum(self.send)

    @property
    def peak_memory(self) -> float:
        """Bytes of the stage that needs most."""
        return max(self.memory)


@dataclass(frozen=True)
class Problem:
    """Units in a topological order, and the devices that stages run on.

    Attributes:
        times: seconds of every unit on every kind of device, [kinds, units].
        working: bytes that are alive while a unit runs, [units].
        values: what units read of each other.
        weights: constants that units read.
        devices: the kind of device of every stage, so there are as many stages.
        memory: bytes that every kind of device has.
        bandwidth: bytes per second between stages.
        latency: seconds that each transfer takes besides.
    """

    times: Array
    working: Array
    values: tuple[Value, ...]
    weights: tuple[Weight, ...]
    devices: tuple[int, ...]
    memory: tuple[float, ...]
    bandwidth: float
    latency: float

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.times.shape[1])

    @property
    def is_bounded(self) -> bool:
        """Whether a device's memory may be too small."""
        return any(np.isfinite(self.memory[kind]) for kind in self.devices)

    @cached_property
    def inputs(self) -> list[list[int]]:
        """The units that every unit depends on directly."""
        found: list[set[int]] = [set() for _ in range(self.units)]
        for value in self.values:
            for reader in value.readers:
                if value.source >= 0 and reader < self.units:
                    found[reader].add(value.source)
        return [sorted(each) for each in found]

    @cached_property
    def weights_of(self) -> list[list[int]]:
        """The weights that every unit reads."""
        found: list[list[int]] = [[] for _ in range(self.units)]
        for index, weight in enumerate(self.weights):
            for reader in weight.readers:
                found[reader].append(index)
        return found

    def send_seconds(self, crossing: float) -> float:
        """Return the seconds that bytes take from one stage to the next."""
        return self.latency + crossing / self.bandwidth if crossing else 0.0

    def memory_of(self, stage: Sequence[int]) -> float:
        """Return the bytes that a stage of these units needs."""
        weights = {weight for unit in stage for weight in self.weights_of[unit]}
        return sum(self.weights[each].bytes for each in weights) + max(float(self.working[unit]) for unit in stage)

    def plan(self, stages: Sequence[Sequence[int]]) -> Plan:
        """Return what stages cost."""
        stage_of = {unit: index for index, stage in enumerate(stages) for unit in stage}
        change = np.zeros(len(stages) + 1)
        for value in self.values:
            made = stage_of[value.source] if value.source >= 0 else 0
            # The outputs leave from the last stage.
            last = max((stage_of.get(each, len(stages) - 1) for each in value.readers), default=made)
            change[made] += value.bytes
            change[last] -= value.bytes
        crossing = [float(each) if each > NONE else 0.0 for each in np.cumsum(change)[:-1]]
        return Plan(
            tuple(tuple(sorted(stage)) for stage in stages),
            tuple(float(self.times[kind, list(stage)].sum()) for kind, stage in zip(self.devices, stages, strict=True)),
            tuple(self.send_seconds(each) for each in crossing),
            tuple(self.memory_of(stage) for stage in stages),
            tuple(crossing),
        )
