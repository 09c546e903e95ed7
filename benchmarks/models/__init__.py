"""The zoo: small models with random weights, shared by the coverage benchmark and the tests.

Importing it imports neither transformers nor any model's code; `Entry.model()` does.
"""

from __future__ import annotations

from benchmarks.models import audio, decoders, encoders, images, multimodal, sequences, translators, vision
from benchmarks.models.entry import Entry

__all__ = ["Entry", "zoo"]

_MODULES = (images, sequences, encoders, decoders, translators, vision, audio, multimodal)


def zoo() -> list[Entry]:
    """Return every entry; names are unique, a transformers model whose name is also hand-written gets "hf-"."""
    return [entry for module in _MODULES for entry in module.entries()]
