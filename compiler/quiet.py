"""Silence what PyTorch says while it works: what matters of it is raised."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch.export import _trace

__all__ = ["quiet", "silenced"]


@contextlib.contextmanager
def silenced(*names: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Hide warnings, and what the loggers called `names`, and those below them, say below `level`."""
    loggers = [logging.getLogger(name) for name in names]
    # torch sets levels on loggers of its own further down, so that a parent's level does not reach them.
    loggers += [
        each
        for name, each in list(logging.root.manager.loggerDict.items())
        if isinstance(each, logging.Logger) and name.startswith(tuple(f"{parent}." for parent in names))
    ]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, before in zip(loggers, levels, strict=True):
            each.setLevel(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, what `torch.export` and its symbolic shapes log below ERROR, and the graphs that it prints."""
    # It prints the graph so far on standard error before it raises: a print of its own is all that this hides.
    vars(_trace)["print"] = _no_print
    try:
        with (
            silenced("torch.export", "torch.fx.experimental.symbolic_shapes", level=logging.ERROR),
            # It logs the traceback of what it raises.
            silenced("torch._subclasses.fake_tensor"),
        ):
            yield
    finally:
        vars(_trace).pop("print", None)


def _no_print(*_: object, **__: object) -> None:
    pass
