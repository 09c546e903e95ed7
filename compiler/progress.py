"""A spinner on a terminal while something takes long; silent everywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

__all__ = ["working"]


@contextlib.contextmanager
def working(label: str, enabled: bool = True) -> Iterator[None]:
    """Show `label` with a spinner on standard error until the block ends, if that is a terminal."""
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield
        return
    with console.status(label):
        yield
