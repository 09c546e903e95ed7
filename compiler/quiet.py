"""Silence what `torch.export` says while it works: what matters of it is raised."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch.export import _trace

__all__ = ["quiet"]

_LOGGERS = ("torch.export", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, what `torch.export` and its symbolic shapes log below ERROR, and the graphs that it prints."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    # It prints the graph so far on standard error before it raises: a print of its own is all that this hides.
    vars(_trace)["print"] = _no_print
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        vars(_trace).pop("print", None)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _no_print(*_: object, **__: object) -> None:
    pass
