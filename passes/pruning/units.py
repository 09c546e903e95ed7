"""Units: positions along the dimensions of tensors, and which of them stand or fall together.

Every position that could be removed has a number, its unit. Operators tie units: a sum ties the channels of its
operands. Units that are tied, directly or not, form a class, and a class is removed whole or not at all. A frozen unit
stays, and with it its class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Classes", "Flags", "Numbers", "Units"]

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of units.

    Attributes:
        of: for every unit its class, [units].
        count: number of classes.
        frozen: by class, the reason why it stays.
    """

    of: Numbers
    count: int
    frozen: dict[int, str]

    @property
    def are_frozen(self) -> Flags:
        """For every class whether it stays, [classes]."""
        found = np.zeros(self.count, np.bool_)
        found[np.fromiter(self.frozen, np.int64, len(self.frozen))] = True
        return found


@dataclass(slots=True)
class Units:
    """Units, ties between them, and what is frozen, collected while operators are looked at."""

    count: int = 0
    _left: list[Numbers] = field(default_factory=list)
    _right: list[Numbers] = field(default_factory=list)
    _frozen: list[tuple[Numbers, str]] = field(default_factory=list)

    def new(self, size: int) -> Numbers:
        """Return `size` new units."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, left: Numbers, right: Numbers) -> None:
        """Tie units at the same places of two arrays that broadcast together."""
        if left is not right:
            first, second = np.broadcast_arrays(left, right)
            self._left.append(first.ravel())
            self._right.append(second.ravel())

    def tie_along(self, units: Numbers, axis: int) -> None:
        """Tie all units that differ in their place along `axis` only."""
        if units.shape[axis] > 1:
            self.tie(units, units.take([0], axis))

    def freeze(self, units: Numbers, reason: str) -> None:
        """Keep units; the first reason counts."""
        self._frozen.append((units.ravel(), reason))

    def classes(self) -> Classes:
        """Return the classes of what is tied so far."""
        left, right = (np.concatenate([np.zeros(0, np.int64), *side]) for side in (self._left, self._right))
        edges = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(self.count, self.count))
        count, of = connected_components(edges, directed=False)
        of = of.astype(np.int64)
        frozen: dict[int, str] = {}
        for units, reason in self._frozen:
            for each in np.unique(of[units]).tolist():
                frozen.setdefault(each, reason)
        return Classes(of, int(count), frozen)
