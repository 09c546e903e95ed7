"""Where casts go, so that there are as few as can be: a minimum cut.

Units (operators, inputs, outputs) are in half precision or in float32. Some are fixed; each value costs a cast when
not all of its maker and readers are in one type, however many they are, since readers share the cast. That is a cut of
a hypergraph, each of whose edges becomes two nodes and three kinds of arcs (Lawler, Cutsets and Partitions of
Hypergraphs, Networks 3, 1973). Free units that no free unit connects are solved apart, so the time is that of the free
regions. Among placements with as few casts the one that casts the fewest bytes is taken, and among these the one with
the most units in half precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csgraph, csr_array

__all__ = ["Edge", "cheapest", "count_casts"]

_LOW, _FLOAT = "half", "float32"
_UNLIMITED = 1 << 30
# Units of a region in which the types of units count: each is a path of its own to be found.
_SMALL = 1000


@dataclass(frozen=True, slots=True)
class Edge:
    """A value.

    Attributes:
        units: its maker and its readers, each once.
        size: bytes of its cast; any unit of measure.
    """

    units: tuple[int, ...]
    size: int = 1


def cheapest(pins: Sequence[bool | None], edges: Iterable[Edge]) -> list[bool]:
    """Return for every unit whether it is in half precision.

    Args:
        pins: True for units that are in half precision, False for those in float32, None for free ones.
        edges: the values.
    """
    found = [bool(pin) for pin in pins]
    # Deep networks repeat themselves: regions of one form have one solution.
    solved: dict[Any, list[bool]] = {}
    for region in _regions(pins, edges):
        types = {pins[unit] for edge in region for unit in edge.units} - {None}
        free = list(dict.fromkeys(unit for edge in region for unit in edge.units if pins[unit] is None))
        if len(types) == 1:
            low = [True in types] * len(free)
        elif not types:
            low = [False] * len(free)
        else:
            places = {unit: place for place, unit in enumerate(free)}
            form = tuple([(*(_place(places, pins, unit) for unit in edge.units), edge.size) for edge in region])
            if form not in solved:
                cut = _cut(pins, region, free)
                solved[form] = [unit in cut for unit in free]
            low = solved[form]
        for unit, is_low in zip(free, low, strict=True):
            found[unit] = is_low
    return found


def count_casts(low: Sequence[bool], edges: Iterable[Edge]) -> int:
    """Return how many casts a placement takes."""
    return sum(len({low[unit] for unit in edge.units}) == 2 for edge in edges)


def _regions(pins: Sequence[bool | None], edges: Iterable[Edge]) -> list[list[Edge]]:
    """Return the edges with free units, those together that free units connect."""
    parents = list(range(len(pins)))

    def root(unit: int) -> int:
        while parents[unit] != unit:
            parents[unit] = parents[parents[unit]]
            unit = parents[unit]
        return unit

    known = []
    for edge in edges:
        free = [unit for unit in edge.units if pins[unit] is None]
        if free:
            known.append((edge, free[0]))
            for unit in free[1:]:
                parents[root(unit)] = root(free[0])
    found: dict[int, list[Edge]] = {}
    for edge, unit in known:
        found.setdefault(root(unit), []).append(edge)
    return list(found.values())


def _cut(pins: Sequence[bool | None], edges: list[Edge], free: Sequence[int]) -> set[int]:
    """Return which free units are in half precision in a minimum cut."""
    arcs = _Arcs()
    cast, sizes = _costs(edges, len(free))
    for index, edge in enumerate(edges):
        ends = {_end(pins[unit], unit) for unit in edge.units}
        if len(ends) > 1 and not {_LOW, _FLOAT} <= ends:
            arcs.join(ends, index, cast + sizes[index])
    if _FLOAT not in arcs.places or _LOW not in arcs.places:
        return set(free) if _LOW in arcs.places else set()
    if len(free) <= _SMALL:
        for unit in free:
            arcs.add(_LOW, unit, 1)
    low = arcs.source_side()
    return {unit for unit in free if unit in low}


def _costs(edges: list[Edge], free: int) -> tuple[int, list[int]]:
    """Return the cost of a cast, and what each edge costs besides: all of these together less than one cast.

    Flows are numbers of 32 bits: in very large regions bytes count by fewer digits, or not at all.
    """
    cast = _UNLIMITED // (2 * len(edges) + 1)
    total, share = sum(edge.size for edge in edges), cast - 2 - free
    unit = free + 1
    sizes = [edge.size * unit if total * unit <= share else edge.size * share // total for edge in edges]
    return cast, sizes if share > 0 else [0] * len(edges)


class _Arcs:
    """A network with integer capacities, between things of any kind."""

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}
        self.capacities: dict[tuple[int, int], int] = {}

    def add(self, tail: Any, head: Any, capacity: int) -> None:
        """Add an arc; several between two places add up."""
        key = self._place(tail), self._place(head)
        self.capacities[key] = min(_UNLIMITED, self.capacities.get(key, 0) + capacity)

    def join(self, ends: set[Any], index: int, cost: int) -> None:
        """Add the arcs of an edge: `cost` is cut where not all ends are on one side."""
        start, stop = (_LOW if _LOW in ends else ("in", index)), (_FLOAT if _FLOAT in ends else ("out", index))
        between = ends - {_LOW, _FLOAT}
        if len(ends) == 2:
            # No nodes of its own.
            a, b = (start, *between) if start == _LOW else (*between, stop) if stop == _FLOAT else between
            self.add(a, b, cost)
            if {a, b}.isdisjoint((_LOW, _FLOAT)):
                self.add(b, a, cost)
            return
        self.add(start, stop, cost)
        for each in between:
            if start != _LOW:
                self.add(each, start, _UNLIMITED)
            if stop != _FLOAT:
                self.add(stop, each, _UNLIMITED)

    def source_side(self) -> set[Any]:
        """Return what is on the side of half precision in a minimum cut."""
        tails, heads = zip(*self.capacities, strict=True)
        shape = (len(self.places), len(self.places))
        capacities = csr_array((np.fromiter(self.capacities.values(), np.int32), (tails, heads)), shape=shape)
        source, sink = self.places[_LOW], self.places[_FLOAT]
        left = csr_array(capacities - csgraph.maximum_flow(capacities, source, sink).flow)
        left.eliminate_zeros()
        reached = set(csgraph.breadth_first_order(left, source, return_predecessors=False).tolist())
        return {name for name, place in self.places.items() if place in reached}

    def _place(self, name: Any) -> int:
        return self.places.setdefault(name, len(self.places))


def _end(pin: bool | None, unit: int) -> Any:
    return unit if pin is None else _LOW if pin else _FLOAT


def _place(places: dict[int, int], pins: Sequence[bool | None], unit: int) -> int:
    """Return the place of a free unit in its region; below zero the type of a pinned one."""
    return places[unit] if pins[unit] is None else -1 if pins[unit] else -2
