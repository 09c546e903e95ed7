"""Where the time of a run goes: by node of the lowered graph, mapped back to the model's modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Profile", "ProfileRow"]


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """The time of one lowered node in one run.

    Attributes:
        node: its name in the lowered graph.
        operator: the kernel or operator.
        module: path of the module that it came from, "" when unknown.
        seconds: time in it per run.
        flops: floating-point operations per run (a multiply-add is two), 0 when unknown.
    """

    node: str
    operator: str
    module: str
    seconds: float
    flops: int = 0


class Profile:
    """The rows of one run, slowest first; `str()` is a table.

    Args:
        rows: one per lowered node.
    """

    def __init__(self, rows: Iterable[ProfileRow]) -> None:
        self.rows: tuple[ProfileRow, ...] = tuple(sorted(rows, key=lambda row: -row.seconds))

    def __iter__(self) -> Iterator[ProfileRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def seconds(self) -> float:
        """Time in all nodes together."""
        return sum(row.seconds for row in self.rows)

    def by_module(self, depth: int = 2) -> dict[str, float]:
        """Return seconds by module path cut to `depth` parts, slowest first."""
        totals: dict[str, float] = {}
        for row in self.rows:
            path = ".".join(row.module.split(".")[:depth])
            totals[path] = totals.get(path, 0.0) + row.seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def table(self, most: int = 20) -> str:
        """Return the `most` slowest nodes as text."""
        lines = [f"{'ms':>9}  {'share':>6}  {'GFLOP/s':>8}  {'operator':24}  module"]
        for row in self.rows[:most]:
            rate = f"{row.flops / row.seconds / 1e9:8.1f}" if row.flops and row.seconds else " " * 8
            share = row.seconds / self.seconds if self.seconds else 0.0
            lines.append(f"{row.seconds * 1e3:9.3f}  {share:6.1%}  {rate}  {row.operator:24}  {row.module or row.node}")
        if len(self.rows) > most:
            lines.append(f"... and {len(self.rows) - most} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()
