"""Schedules on paper: what waits for what, and how long devices idle."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from burnish import OptionError
from burnish.passes.partition.gantt import text_of, write_timelines
from burnish.passes.partition.schedules import Schedule, Timeline, simulate


def _check(timeline: Timeline, stages: int) -> None:
    """Hold a timeline to what any schedule must keep."""
    ends = {(job.kind, job.stage, job.micro_batch): job for job in timeline.jobs}
    assert len(ends) == len(timeline.jobs)
    for job in timeline.jobs:
        if job.kind == "forward" and job.stage:
            assert ends["forward", job.stage - 1, job.micro_batch].end <= job.start + 1e-9
        if job.kind == "backward":
            assert ends["forward", job.stage, job.micro_batch].end <= job.start + 1e-9
            if job.stage < stages - 1:
                assert ends["backward", job.stage + 1, job.micro_batch].end <= job.start + 1e-9
    for _, jobs in itertools.groupby(
        sorted(timeline.jobs, key=lambda job: (job.device, job.start)), lambda j: j.device
    ):
        assert all(first.end <= second.start + 1e-9 for first, second in itertools.pairwise(jobs))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "batches"), [(1, 1), (2, 8), (4, 4), (4, 16), (7, 3)])
def test_the_bubble_of_equal_stages(schedule: Schedule, stages: int, batches: int) -> None:
    timeline = simulate(schedule, [1.0] * stages, [0.0] * stages, batches, [2.0] * stages)
    _check(timeline, stages)
    assert len(timeline.jobs) == 2 * stages * batches
    # GPipe, section 2.3: (stages - 1) of batches + stages - 1; 1f1b idles as long.
    assert timeline.bubble == pytest.approx((stages - 1) / (batches + stages - 1))


def test_interleaved_stages_idle_less() -> None:
    plain = simulate("1f1b", [2.0] * 4, [0.0] * 4, 8, [4.0] * 4)
    interleaved = simulate("interleaved", [1.0] * 8, [0.0] * 8, 8, [2.0] * 8, 4)
    _check(interleaved, 8)
    assert interleaved.seconds < plain.seconds
    # Narayanan et al., section 2.2: the idle time is divided by the number of stages a device has.
    idle = [each.bubble * each.seconds for each in (plain, interleaved)]
    assert idle[1] == pytest.approx(idle[0] / 2)


def test_the_slowest_stage_sets_the_pace() -> None:
    timeline = simulate("gpipe", [1.0, 3.0, 1.0], [0.5, 0.0, 0.0], 10)
    assert timeline.seconds == pytest.approx(1.5 + 10 * 3 + 1)
    assert {job.kind for job in timeline.jobs} == {"forward"}


def test_1f1b_keeps_fewer_batches_than_gpipe() -> None:
    def kept(schedule: Schedule) -> int:
        timeline = simulate(schedule, [1.0] * 4, [0.0] * 4, 12, [2.0] * 4)
        mine = sorted((job for job in timeline.jobs if job.stage == 0), key=lambda job: job.start)
        counts = itertools.accumulate(1 if job.kind == "forward" else -1 for job in mine)
        return max(counts)

    assert kept("gpipe") == 12 and kept("1f1b") == 4


@pytest.mark.parametrize(
    ("schedule", "stages", "devices", "batches"),
    [("gpipe", 4, 2, 4), ("interleaved", 5, 2, 4), ("interleaved", 4, 2, 5)],
)
def test_what_does_not_go(schedule: Schedule, stages: int, devices: int, batches: int) -> None:
    with pytest.raises(OptionError, match="the schedule"):
        simulate(schedule, [1.0] * stages, [0.0] * stages, batches, [2.0] * stages, devices)


def test_charts(tmp_path: Path) -> None:
    timeline = simulate("1f1b", [1.0] * 2, [0.0] * 2, 2, [1.0] * 2)
    lines = text_of(timeline).splitlines()
    # Six seconds on 96 columns.
    assert lines[0] == "   0 |" + "0" * 16 + "1" * 16 + "." * 16 + "a" * 16 + "." * 16 + "b" * 16 + "|"
    assert lines[1] == "   1 |" + "." * 16 + "0" * 16 + "a" * 16 + "1" * 16 + "b" * 16 + "." * 16 + "|"
    for name in ("chart.svg", "chart.txt"):
        write_timelines(tmp_path / name, {"1f1b": timeline})
    assert "33.3% of the devices' time idle" in (tmp_path / "chart.txt").read_text()
    assert (tmp_path / "chart.svg").read_text().count("<path") > len(timeline.jobs)
