"""Stages at the same time, each in a thread, on micro-batches that go from one to the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["run_pipelined"]

Values = dict[str, Any]
# Micro-batches that may wait before a stage.
_WAITING = 2


def run_pipelined(
    run_stage: Callable[[int, Mapping[str, Any]], Values], stages: int, batches: Sequence[Values]
) -> list[Values]:
    """Return what the last stage leaves of every micro-batch.

    Args:
        run_stage: runs a stage, by number, on values by name, and returns those for the next; it lets go of Python's
            lock while it computes.
        stages: how many.
        batches: inputs by name.

    Raises:
        Exception: the first that a stage raised.
    """
    edges: list[queue.Queue[Values | None]] = [queue.Queue(_WAITING) for _ in range(stages + 1)]
    edges[-1] = queue.Queue()
    failures: list[BaseException] = []

    def work(index: int) -> None:
        while (values := edges[index].get()) is not None:
            # After a failure batches are only let through, so that nobody waits for ever.
            if not failures:
                try:
                    values = run_stage(index, values)
                except BaseException as error:
                    failures.append(error)
            edges[index + 1].put(values)
        edges[index + 1].put(None)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(stages)]
    for thread in threads:
        thread.start()
    for values in batches:
        edges[0].put(dict(values))
    edges[0].put(None)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return list(iter(edges[-1].get, None))
