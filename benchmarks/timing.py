"""Fair timing on a small shared machine: candidates take turns, and disturbed blocks are measured again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Interleaved", "interleave", "ratio"]

_DISTURBED = 1.25
_RETRIES = 3
# Threads of the candidate before spin on for a while: a block starts when they have come to rest.
_SETTLE = 0.1


@dataclass(frozen=True)
class Interleaved:
    """Times of one candidate.

    Attributes:
        median: seconds per call, the middle block.
        ratio: to the first candidate, the middle of the ratios block by block.
        spread: half the distance between the quartiles of that ratio.
        blocks: seconds per call, block by block.
    """

    median: float
    ratio: float
    spread: float
    blocks: tuple[float, ...]


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, blocks: int = 15, seconds: float = 0.2
) -> dict[str, Interleaved]:
    """Time `candidates` in turns, A B C A B C ..., each for about `seconds` a block.

    A block that takes 1.25 times as long as the candidate's best so far is measured again, up to three times.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(blocks):
        for name, call in candidates.items():
            found = _block(call, seconds)
            for _ in range(_RETRIES):
                if not times[name] or found < _DISTURBED * min(times[name]):
                    break
                found = min(found, _block(call, seconds))
            times[name].append(found)
    first = times[next(iter(candidates))]
    return {
        name: Interleaved(statistics.median(found), *ratio(found, first), tuple(found)) for name, found in times.items()
    }


def ratio(times: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the middle ratio of `times` to `others`, block by block, and half the distance between its quartiles."""
    ratios = sorted(a / b for a, b in zip(times, others, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return statistics.median(ratios), (quartiles[2] - quartiles[0]) / 2


def _block(call: Callable[[], object], seconds: float) -> float:
    _run_for(call, _SETTLE)
    return _run_for(call, seconds)


def _run_for(call: Callable[[], object], seconds: float) -> float:
    start, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        taken = time.perf_counter() - start
        if taken >= seconds:
            return taken / calls
