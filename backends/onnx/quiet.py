"""Silence what torch's exporter and its helpers say while they work: the outcome is checked anyway."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, log records below ERROR, and prints ("Evaluation failed", "torchvision is not installed")."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    # torch sets levels on loggers of its own further down, so that a parent's level does not reach them.
    loggers += [
        each
        for name, each in list(logging.root.manager.loggerDict.items())
        if isinstance(each, logging.Logger) and name.startswith(tuple(f"{parent}." for parent in _LOGGERS))
    ]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
