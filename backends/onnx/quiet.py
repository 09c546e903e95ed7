"""Silence what torch's exporter and its helpers say while they work: the outcome is checked anyway."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from burnish.compiler.quiet import silenced

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, log records, and prints ("Evaluation failed", "torchvision is not installed")."""
    with silenced("torch.onnx", "torch.export", "onnxscript", "onnx_ir"), contextlib.redirect_stdout(io.StringIO()):
        yield
