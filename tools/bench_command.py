"""`burnish bench` and `burnish profile`: how long things take, and where the time goes.

Several files are timed in turns, call by call, so that what else the machine does falls on all of them alike. Inputs
of the same name have the same values for all, and the same sizes where they are dynamic.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_lines, print_table
from burnish.tools.verb import InputOption, JsonFlag, SeedOption

if TYPE_CHECKING:
    from burnish.compiler.capture import Inputs
    from burnish.compiler.measure import Timing
    from burnish.tools.runnable import Runnable

__all__ = ["bench", "profile"]

_WARM_UP_CALLS = 3
_WARM_UP_SHARE = 0.25


def bench(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", show_default=False, help="Artifacts, or .burnish files, which run in eager."),
    ],
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to time each file.")] = 2.0,
    inputs: InputOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Time calls of several files in turns; the ratio is to the first one, below 1 is faster.

    [dim]burnish bench resnet.burnish resnet.onnx resnet.pt --input 'f32[1,3,224,224]'[/]
    """
    from burnish.compiler.backend import refuse_untimed
    from burnish.compiler.progress import working
    from burnish.tools.runnable import Runnable

    runnables = [Runnable.load(file) for file in files]
    for file, each in zip(files, runnables, strict=True):
        if each.artifact is not None:
            with _named(file):
                refuse_untimed(each.artifact)
    # Of all files a Program alone keeps example inputs: their sizes are for all, or some would have more to do.
    samples = {name: value for each in reversed(runnables) for name, value in each.samples.items()}
    calls = [_call(dataclasses.replace(each, samples=samples), inputs or [], seed) for each in runnables]
    with working("timing"):
        timings = _in_turns(calls, seconds)
    ratios = [each.median / timings[0].median for each in timings]
    if as_json:
        pairs = zip(files, timings, ratios, strict=True)
        print_json([{"file": str(file), **dataclasses.asdict(each), "ratio": ratio} for file, each, ratio in pairs])
        return
    headings = ("median ms", "best ms", "p90 ms", "ratio", "calls", "first ms")
    rows = [
        (
            str(file),
            *(f"{value * 1e3:.3f}" for value in (each.median, each.best, each.p90)),
            f"{ratio:.3f}",
            str(each.calls),
            f"{each.first * 1e3:.1f}",
        )
        for file, each, ratio in zip(files, timings, ratios, strict=True)
    ]
    print_table(("file", *headings), rows, right=headings)


def profile(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="An artifact.")],
    inputs: InputOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show where the time of a run goes, node by node, slowest first.

    [dim]burnish profile resnet.onnx --input 'f32[1,3,224,224]'[/]
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or else PyTorch's profiler logs its start and end
    from burnish.compiler.errors import InputError
    from burnish.tools.runnable import Runnable

    runnable = Runnable.load(file)
    if runnable.artifact is None:
        raise InputError(f"{file}: a program runs in eager PyTorch and has no profile: compile it first")
    args, kwargs = runnable.arguments(inputs or [], seed)
    with _named(file):
        found = runnable.artifact.profile(_as_inputs(args, kwargs, runnable.binding.parameters))
    if as_json:
        print_json({"file": str(file), "seconds": found.seconds, "nodes": [dataclasses.asdict(row) for row in found]})
    else:
        print_lines(str(found))


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Let errors say of which file they are."""
    from burnish.compiler.errors import BackendError, InputError, MissingDependencyError

    try:
        yield
    except (BackendError, InputError, MissingDependencyError) as error:
        raise type(error)(f"{file}: {error}") from error


def _call(runnable: Runnable, texts: list[str], seed: int) -> Callable[[], object]:
    args, kwargs = runnable.arguments(texts, seed)
    return lambda: runnable.call(*args, **kwargs)


def _as_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], parameters: tuple[str, ...]) -> Inputs:
    """Return the arguments of a call as one tuple, or as one dict by parameter name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs} if kwargs else args


def _in_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[Timing]:
    """Time each of `calls` for about `seconds` seconds, one call of each at a time, after a warm-up."""
    from burnish.compiler.measure import Timing, timed

    first = [timed(call) for call in calls]
    _rounds(calls, seconds * _WARM_UP_SHARE, least=_WARM_UP_CALLS - 1)
    times = _rounds(calls, seconds, least=1)
    return [
        Timing(statistics.median(each), min(each), sorted(each)[(len(each) * 9 - 1) // 10], len(each), start)
        for each, start in zip(times, first, strict=True)
    ]


def _rounds(calls: Sequence[Callable[[], object]], seconds: float, *, least: int) -> list[list[float]]:
    from burnish.compiler.measure import timed

    times: list[list[float]] = [[] for _ in calls]
    until = time.perf_counter() + seconds * len(calls)
    while len(times[0]) < least or time.perf_counter() < until:
        for call, found in zip(calls, times, strict=True):
            found.append(timed(call))
    return times
