"""Where time went: the kernels that a runtime ran, each mapped back to the node and the module that it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from burnish.backends.onnx.model import Place
from burnish.compiler.profile import ProfileRow

__all__ = ["Kernel", "find_place", "kernels_of_trace", "rows_of", "work_of"]

_SUFFIX = "_kernel_time"
# Nodes between a kernel's main operator and the last one fused into it: batch norm, add, activation.
_FUSED = 3


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a runtime ran as one piece.

    Attributes:
        name: the runtime's name for it.
        operator: the runtime's operator.
        seconds: time per run.
        places: the graph nodes that it may stand for; the one with the most work counts.
    """

    name: str
    operator: str
    seconds: float
    places: tuple[Place, ...]


def rows_of(kernels: Iterable[Kernel], flops: Mapping[str, int]) -> Iterator[ProfileRow]:
    """Yield one row for each kernel.

    Args:
        kernels: all that ran.
        flops: FLOPs by Program node; the slowest kernel of a node gets them.
    """
    done: set[str] = set()
    for kernel in sorted(kernels, key=lambda each: -each.seconds):
        place = max(kernel.places, key=lambda each: flops.get(each.node, 0), default=Place("", "", ""))
        work = 0 if place.node in done else flops.get(place.node, 0)
        done.add(place.node)
        yield ProfileRow(kernel.name, kernel.operator, place.module, kernel.seconds, work)


def kernels_of_trace(text: str, places: Mapping[str, Place]) -> Iterator[Kernel]:
    """Yield the kernels in ONNX Runtime's trace, in seconds per run, the first run left out.

    Args:
        text: the trace, JSON.
        places: where each graph node comes from.
    """
    runs, times = _times(json.loads(text))
    for (name, operator), seconds in times.items():
        yield Kernel(name, operator, seconds / runs, (find_place(name, operator, places),))


def work_of(place: Place, operator: str, places: Mapping[str, Place]) -> Place:
    """Return `place`, or the one shortly before whose ONNX operator is named in `operator`, where its own is not."""
    current, steps = place, 0
    while current.operator not in operator and current.before and steps < _FUSED:
        current, steps = places[current.before[0]], steps + 1
    return current if current.operator in operator else place


def find_place(name: str, operator: str, places: Mapping[str, Place]) -> Place:
    """Return the place of a kernel of ONNX Runtime; an empty one where there is none.

    Args:
        name: of the kernel.
        operator: what it is; of nodes that it may stand for, one with this operator counts.
        places: where each node of the graph before comes from.
    """
    if name not in places:
        # A node that ONNX Runtime fused or inserted has the name of one that it replaced within its own.
        within = [known for known in places if known and known in name]
        if not within:
            return Place("", "", operator)
        name = max(within, key=len)
    # What ONNX Runtime fused may be named after the last node (the activation): the work is that of one before.
    return work_of(places[name], operator, places)


def _times(events: list[dict[str, Any]]) -> tuple[int, dict[tuple[str, str], float]]:
    ends = sorted(event["ts"] + event["dur"] for event in events if event.get("name") == "model_run")
    # The first run allocates and warms up.
    start = ends[0] if len(ends) > 1 else 0
    times: dict[tuple[str, str], float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX) and event["ts"] >= start:
            key = (name.removesuffix(_SUFFIX), str(event["args"].get("op_name", "")))
            times[key] = times.get(key, 0.0) + event["dur"] * 1e-6
    return max(len(ends) - 1, 1), times
