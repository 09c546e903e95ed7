"""Facts: what passes promise about a Program, so that pipelines can be checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Fact"]


@dataclass(frozen=True, order=True, slots=True)
class Fact:
    """A property of a Program by name. A package that adds passes may make facts of its own."""

    name: str

    CANONICAL: ClassVar[Fact]
    """Equivalent operators have one form (`aten.linear`, `aten.relu6`, `aten.reshape`); no no-ops remain."""
    BATCH_NORM_FOLDED: ClassVar[Fact]
    """Every batch norm that can be folded into a neighbour has been."""

    def __str__(self) -> str:
        return self.name


Fact.CANONICAL = Fact("canonical")
Fact.BATCH_NORM_FOLDED = Fact("batch-norm-folded")
