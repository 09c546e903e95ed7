"""Read ONNX Runtime's trace: the time of each kernel, mapped back to the nodes and modules that it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from burnish.backends.onnx.model import Place
from burnish.compiler.profile import ProfileRow

__all__ = ["rows_of"]

_SUFFIX = "_kernel_time"
# Nodes between a kernel's main operator and the last one fused into it: batch norm, add, activation.
_FUSED = 3


def rows_of(text: str, places: Mapping[str, Place], flops: Mapping[str, int]) -> Iterator[ProfileRow]:
    """Yield one row for each kernel, in seconds per run, the first run left out.

    Args:
        text: ONNX Runtime's trace, JSON.
        places: where each graph node comes from.
        flops: FLOPs by Program node; the slowest kernel of a node gets them.
    """
    runs, times = _times(json.loads(text))
    rows = []
    for (name, operator), seconds in times.items():
        place = _find(name, operator, places)
        rows.append((seconds / runs, name, operator, place.module, place.node))
    done: set[str] = set()
    for seconds, name, operator, module, node in sorted(rows, reverse=True):
        work = 0 if node in done else flops.get(node, 0)
        done.add(node)
        yield ProfileRow(name, operator, module, seconds, work)


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


def _find(name: str, operator: str, places: Mapping[str, Place]) -> Place:
    if name not in places:
        # A node that ONNX Runtime fused or inserted has the name of one that it replaced within its own.
        within = [known for known in places if known and known in name]
        if not within:
            return Place("", "", operator)
        name = max(within, key=len)
    # What ONNX Runtime fused may be named after the last node (the activation): the work is that of one before.
    current, steps = places[name], 0
    while current.operator not in operator and current.before and steps < _FUSED:
        current, steps = places[current.before[0]], steps + 1
    return current if current.operator in operator else places[name]
