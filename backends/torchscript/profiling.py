"""Time per node of a TorchScript module, from PyTorch's profiler.

The profiler says on which line of the generated source an operator was called, and the source knows the node of each
line. Cases not handled: time spent between operators (the interpreter, a few microseconds per operator).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from burnish.compiler.profile import Profile, ProfileRow

__all__ = ["profile_calls"]

_PLACE = re.compile(r"\((\d+)\): forward$")
# Makes an operand contiguous on the line of the node that reads it.
_COPY = "aten::contiguous"
_WARM_UP_CALLS = 3
_CALLS = 10


def profile_calls(
    call: Callable[[], object], lines: Mapping[int, tuple[str, str]], flops: Mapping[str, int]
) -> Profile:
    """Run `call` several times, after a warm-up, and return the mean time of every node.

    Args:
        call: one run of the module.
        lines: display name and module path of the node on each line of the source; empty where it is not known.
        flops: floating-point operations of the nodes by display name, where known.
    """
    for _ in range(_WARM_UP_CALLS):
        call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, with_stack=True, acc_events=True) as profiler:
        for _ in range(_CALLS):
            call()
    seconds: dict[int, float] = {}
    operators: dict[int, str] = {}
    for event in profiler.events() or ():
        # The innermost frame may be a method that forward calls.
        place = next(filter(None, map(_PLACE.search, event.stack or ())), None)
        if place is None:
            continue
        line = int(place.group(1))
        # Its own time only: the operators that it calls are on the same line.
        seconds[line] = seconds.get(line, 0.0) + event.self_cpu_time_total * 1e-6 / _CALLS
        if not _is_copy(event):
            operators.setdefault(line, str(event.name))
    rows = []
    for line, total in seconds.items():
        node, module = lines.get(line, (f"line {line}", ""))
        rows.append(ProfileRow(node, operators.get(line, _COPY), module, total, flops.get(node, 0)))
    return Profile(rows)


def _is_copy(event: Any) -> bool:
    while event is not None and event.name != _COPY:
        event = event.cpu_parent
    return event is not None
