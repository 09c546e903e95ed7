"""Fewer garbage collections while a pass runs: it makes many objects that live on, among which none is garbage.

Not handled: passes that run in several threads at a time. The threshold is the process's, and what the last of them to
end puts back may be the one that another has set.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["rare_collections"]

# New containers between two collections of the youngest; Python's own is 700. Ten times as many help no further.
_OBJECTS = 50_000


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage less often; as often as before where it is switched off or rarer already."""
    before = gc.get_threshold()
    # A threshold of 0 means never.
    if 0 < before[0] < _OBJECTS:
        gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
