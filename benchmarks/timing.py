"""Fair timing on a small shared machine: candidates take turns, and disturbed blocks are measured again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Interleaved", "interleave"]

_DISTURBED = 1.25
_RETRIES = 3


@dataclass(frozen=True)
class Interleaved:
    """Times of one candidate.

    Attributes:
        median: seconds per call, the middle block.
        ratio: to the first candidate, the middle of the ratios block by block.
        spread: half the distance between the quartiles of that ratio.
    """

    median: float
    ratio: float
    spread: float


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, blocks: int = 15, seconds: float = 0.2
) -> dict[str, Interleaved]:
    """Time `candidates` in turns, A B C A B C ..., each for about `seconds` a block.

    A block that takes 1.25 times as long as the candidate's best so far is measured again, up to three times.
    """
    calls = {name: max(1, int(seconds / max(1e-6, _warm(call)))) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(blocks):
        for name, call in candidates.items():
            found = _block(call, calls[name])
            for _ in range(_RETRIES):
                if not times[name] or found < _DISTURBED * min(times[name]):
                    break
                found = min(found, _block(call, calls[name]))
            times[name].append(found)
    first = times[next(iter(candidates))]
    return {name: _summary(found, first) for name, found in times.items()}


def _warm(call: Callable[[], object]) -> float:
    call()
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _block(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _summary(times: list[float], first: list[float]) -> Interleaved:
    ratios = sorted(a / b for a, b in zip(times, first, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Interleaved(statistics.median(times), statistics.median(ratios), (quartiles[2] - quartiles[0]) / 2)
