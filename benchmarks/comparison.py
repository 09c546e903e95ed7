"""What benchmarks that compare candidates on the same models share: drift, a printed row, the command line."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.sessions import Call
from benchmarks.timing import Interleaved, interleave, ratio
from burnish.compiler.numerics import worst_drift

__all__ = ["THREADS", "Groups", "against", "eager", "fastest", "measure_batch", "reason", "run"]

THREADS = 2
Groups = Mapping[tuple[str, ...], tuple[str, ...]]
"""Names of our candidates to the names of those that they are compared with."""


def eager(model: torch.nn.Module) -> Call:
    """Return a function of the inputs by name."""

    def call(inputs: dict[str, torch.Tensor]) -> Any:
        with torch.no_grad():
            return model(**inputs)

    return call


def reason(error: BaseException) -> str:
    """Return the first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


def measure_batch(
    name: str, known: Mapping[str, Call], inputs: dict[str, torch.Tensor], blocks: int, groups: Groups
) -> dict[str, Any]:
    """Time candidates, "eager" among them, on one batch; print and return a row.

    The row holds `model`, `batch`, `drift` and `times` by candidate, and `against`: for the best peer of each group our
    best candidate, the ratio of their times and its spread.
    """
    expected = known["eager"](inputs)
    drift = {key: _drift(call(inputs), expected) for key, call in known.items()}
    times = interleave({key: functools.partial(call, inputs) for key, call in known.items()}, blocks=blocks)
    batch = next(iter(inputs.values())).shape[0]
    row: dict[str, Any] = {"model": name, "batch": batch, "drift": drift, "times": times, "against": {}}
    print(f"{name}, batch {batch}: eager {times['eager'].median * 1e3:.1f} ms")
    for key, found in list(times.items())[1:]:
        off = f"drift {drift[key]:.0e}"
        print(f"    {key:14}{found.median * 1e3:9.2f} ms  {found.ratio:5.3f} +- {found.spread:.3f}   {off}")
    for ours, peers in groups.items():
        best, peer = fastest(times, ours), fastest(times, peers)
        if best is not None and peer is not None:
            middle, spread = ratio(times[best].blocks, times[peer].blocks)
            row["against"][peer] = (best, middle, spread)
            verdict = (
                "faster" if middle + spread < 1 else "equal within the spread" if middle - spread <= 1 else "SLOWER"
            )
            print(f"    {best} / {peer}: {middle:.3f} +- {spread:.3f}  {verdict}", flush=True)
    return row


def fastest(times: Mapping[str, Interleaved], names: Sequence[str]) -> str | None:
    """Return the one of `names` that took the least time; None where none of them ran."""
    return min((each for each in names if each in times), key=lambda each: times[each].median, default=None)


def against(row: dict[str, Any], peers: Sequence[str]) -> str:
    """Return the cell of a table: our time as a ratio to the best of `peers`."""
    found = next(((peer, each) for peer, each in row["against"].items() if peer in peers), None)
    if found is None:
        return "none ran"
    peer, (best, middle, spread) = found
    return f"{middle:.3f} +- {spread:.3f} ({best} / {peer})"


def run(
    about: str | None,
    measure: Callable[[str, list[int], int, set[str]], list[dict[str, Any]]],
    summary: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Read the command line, measure, and print the summary.

    Args:
        about: the text of `--help`.
        measure: rows for a filter of models, batch sizes, number of blocks, and candidates to leave out.
        summary: a table of all rows.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only models whose name contains one of these, comma-separated")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--without", default="", help="candidates to leave out, comma-separated")
    parser.add_argument("--json", default="", help="write the figures here")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    without = {each for each in chosen.without.split(",") if each}
    rows = measure(chosen.filter, [int(each) for each in chosen.batches.split(",")], chosen.blocks, without)
    print(summary(rows))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(rows, default=lambda value: value.__dict__, indent=1))


def _drift(actual: Any, expected: Any) -> float:
    leaves = torch.utils._pytree.tree_leaves
    found = [
        torch.from_numpy(np.asarray(each)) if not isinstance(each, torch.Tensor) else each for each in leaves(actual)
    ]
    return worst_drift(found[:1], leaves(expected)[:1])
