"""Time per call of something compiled, until its result is there: GPUs that hold a part of it are waited for.

Cases not handled: asynchronous devices other than CUDA's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

__all__ = ["Timing", "benchmark", "timed"]

_WARM_UP_CALLS = 3
_WARM_UP_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call.

    Attributes:
        median: the middle call.
        best: the fastest call.
        p90: 90% of the calls were at least this fast.
        calls: how many calls were timed.
        first: the very first call, before anything was warm.
    """

    median: float
    best: float
    p90: float
    calls: int
    first: float

    def __str__(self) -> str:
        return (
            f"median {self.median * 1e3:.3f} ms, best {self.best * 1e3:.3f} ms, p90 {self.p90 * 1e3:.3f} ms"
            f" over {self.calls} calls (first call {self.first * 1e3:.1f} ms)"
        )


def benchmark(call: Callable[[], object], seconds: float = 2.0) -> Timing:
    """Call `call` for about `seconds` seconds, after a warm-up of at least 3 calls, and return the time per call.

    A call that takes longer than `seconds` is timed once after the warm-up.
    """
    first = timed(call)
    warm_until = time.perf_counter() + seconds * _WARM_UP_SHARE
    warm_calls = 1
    while warm_calls < _WARM_UP_CALLS or time.perf_counter() < warm_until:
        timed(call)
        warm_calls += 1
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        times.append(timed(call))
    times.sort()
    return Timing(statistics.median(times), times[0], times[(len(times) * 9 - 1) // 10], len(times), first)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that one call takes until its result is there."""
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        _wait_for(result)
    return time.perf_counter() - start


def _wait_for(result: object) -> None:
    """Wait until the GPUs that hold a part of a result have done their work."""
    for device in {each.device for each in pytree.tree_leaves(result) if getattr(each, "is_cuda", False)}:
        torch.cuda.synchronize(device)
