"""Schedules: in which order devices work on micro-batches, and when each job starts, on paper.

    gpipe         all micro-batches forward, then all backward (Huang et al., arXiv 1811.06965)
    1f1b          after a warm-up one forward, one backward in turn (Narayanan et al., PipeDream, SOSP 2019)
    interleaved   1f1b with several stages a device, stage s on device s modulo devices (Narayanan et al., arXiv
                  2104.04473)

The orders are those of `torch.distributed.pipelining`. Without backward seconds all are the same: inference. Sending
keeps the sender busy, as it does in `Problem`.

Not handled: schedules that split the backward pass (zero bubble).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from burnish.compiler.errors import OptionError

__all__ = ["Job", "Schedule", "Timeline", "simulate"]

Schedule = Literal["gpipe", "1f1b", "interleaved"]
Kind = Literal["forward", "backward"]
_Step = tuple[Kind, int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """A micro-batch on a stage.

    Attributes:
        kind: forward or backward.
        stage: from 0.
        micro_batch: from 0.
        device: from 0.
        start: seconds.
        end: seconds, what it makes having been sent.
    """

    kind: Kind
    stage: int
    micro_batch: int
    device: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What devices do.

    Attributes:
        devices: how many.
        jobs: in order of their start.
    """

    devices: int
    jobs: tuple[Job, ...]

    @property
    def seconds(self) -> float:
        """When the last job ends."""
        return max(job.end for job in self.jobs)

    @property
    def bubble(self) -> float:
        """The part of all devices' time in which they wait."""
        busy = sum(job.end - job.start for job in self.jobs)
        return 1 - busy / (self.devices * self.seconds) if self.seconds > 0 else 0.0


def simulate(
    schedule: Schedule,
    forward: Sequence[float],
    send: Sequence[float],
    micro_batches: int,
    backward: Sequence[float] = (),
    devices: int | None = None,
) -> Timeline:
    """Return when devices do what.

    Args:
        schedule: in which order.
        forward: seconds of a micro-batch on every stage.
        send: seconds from every stage to the next, and of gradients back.
        micro_batches: how many.
        backward: seconds of the backward pass on every stage; empty for inference.
        devices: as many as stages but for `interleaved`.

    Raises:
        OptionError: the schedule does not go with these numbers.
    """
    stages = len(forward)
    devices = stages if devices is None else devices
    if stages % devices or (schedule != "interleaved" and stages != devices):
        raise OptionError(f"the schedule {schedule} cannot run {stages} stages on {devices} devices")
    steps = [_steps(schedule, device, devices, stages // devices, micro_batches) for device in range(devices)]
    if not backward:
        steps = [[step for step in each if step[0] == "forward"] for each in steps]
    last = stages - 1
    ends: dict[_Step, float] = {}
    free, next_step = [0.0] * devices, [0] * devices
    jobs: list[Job] = []
    waiting = list(range(devices))
    while waiting:
        device = waiting.pop()
        while next_step[device] < len(steps[device]):
            step = kind, stage, batch = steps[device][next_step[device]]
            if kind == "forward":
                needs: list[_Step] = [("forward", stage - 1, batch)] if stage else []
                seconds = forward[stage] + (send[stage] if stage < last else 0.0)
            else:
                needs = [("forward", stage, batch)]
                if stage < last:
                    needs.append(("backward", stage + 1, batch))
                seconds = backward[stage] + (send[stage - 1] if stage else 0.0)
            if not all(each in ends for each in needs):
                break
            start = max([free[device], *(ends[each] for each in needs)])
            ends[step] = free[device] = start + seconds
            jobs.append(Job(kind, stage, batch, device, start, start + seconds))
            next_step[device] += 1
            # Only neighbours wait for this.
            waiting += [(stage + 1) % devices if kind == "forward" else (stage - 1) % devices]
    return Timeline(devices, tuple(sorted(jobs, key=lambda job: (job.start, job.device))))


def _steps(schedule: Schedule, device: int, devices: int, local: int, batches: int) -> list[_Step]:
    """Return what a device does, in order."""
    rounds = max(1, batches // devices) if local > 1 else 1
    if batches % rounds:
        raise OptionError(
            f"the schedule interleaved needs micro-batches in whole rounds of its {devices} devices, not {batches}"
        )
    group = batches // rounds

    def step(kind: Kind, index: int) -> _Step:
        number = index // group % local
        stage = (number if kind == "forward" else local - 1 - number) * devices + device
        return kind, stage, index // (group * local) * group + index % group

    total = local * batches
    forwards = [step("forward", index) for index in range(total)]
    backwards = [step("backward", index) for index in range(total)]
    if schedule == "gpipe":
        return forwards + backwards
    warm_up = devices - device if local == 1 else (local - 1) * group + 2 * (devices - 1 - device) + 1
    warm_up = min(warm_up, total)
    found = forwards[:warm_up]
    for index in range(total):
        found.append(backwards[index])
        found += forwards[warm_up + index : warm_up + index + 1]
    return found
