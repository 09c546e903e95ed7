"""Gantt charts of timelines, as text or as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import MissingDependencyError
from burnish.passes.partition.schedules import Timeline

__all__ = ["text_of", "write_timelines"]

_COLUMNS = 96
_FORWARD, _BACKWARD = "0123456789", "abcdefghij"
_COLORS = {"forward": "tab:blue", "backward": "tab:orange"}
# Devices of which a chart shows each.
_MOST = 64


def text_of(timeline: Timeline) -> str:
    """Return a line for each device: the last digit of the micro-batch forward, a letter for it backward, . idle."""
    lines = [["."] * _COLUMNS for _ in range(min(timeline.devices, _MOST))]
    scale = _COLUMNS / timeline.seconds if timeline.seconds > 0 else 0.0
    for job in timeline.jobs:
        if job.device < len(lines):
            sign = (_FORWARD if job.kind == "forward" else _BACKWARD)[job.micro_batch % len(_FORWARD)]
            for column in range(
                int(job.start * scale), min(max(int(job.end * scale), int(job.start * scale) + 1), _COLUMNS)
            ):
                lines[job.device][column] = sign
    return "\n".join(f"{device:>4} |{''.join(line)}|" for device, line in enumerate(lines))


def write_timelines(path: Path, timelines: Mapping[str, Timeline]) -> None:
    """Write charts of timelines by name: .svg as a picture, .txt as text.

    Raises:
        InputError: the file cannot be written.
        MissingDependencyError: a picture needs matplotlib.
    """
    if path.suffix == ".txt":
        parts = [f"{_title(name, each)}\n{text_of(each)}\n" for name, each in timelines.items()]
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(parts))
        return
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("a chart of a timeline needs matplotlib: pip install matplotlib") from error
    matplotlib.rcParams["svg.hashsalt"] = "burnish"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, sum(0.8 + 0.25 * min(each.devices, _MOST) for each in timelines.values())))
    axes = figure.subplots(len(timelines), 1, squeeze=False)[:, 0]
    for axis, (name, timeline) in zip(axes, timelines.items(), strict=True):
        for job in timeline.jobs:
            if job.device < _MOST:
                axis.barh(
                    job.device, job.end - job.start, left=job.start, height=0.9, color=_COLORS[job.kind], edgecolor="w"
                )
        axis.set_title(_title(name, timeline), fontsize="small", loc="left")
        axis.invert_yaxis()
        axis.set_ylabel("device")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _title(name: str, timeline: Timeline) -> str:
    return f"{name}: {timeline.seconds:.3g} s, {timeline.bubble:.1%} of the devices' time idle"
