"""IntegerKernels: which kernels of a runtime compute in integers, which in floats and why, and how much work each does.

Multiply-adds are those of the Program's node that a kernel stands for; kernels of one node have equal parts of them. A
node of which no kernel is found counts as float.

Cases not handled: kernels within branches of a conditional; it counts as float. Sizes that depend on the data: nodes
that have them do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from burnish.compiler.cost import NodeCost

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["IntegerKernels", "KernelType", "macs_of"]

_WORKING = frozenset({"convolution", "matmul", "attention", "recurrent"})
_NAMED = 5
_BRANCHES = "kernels within branches are not looked at, and count as float"


@dataclass(frozen=True, slots=True)
class KernelType:
    """What a kernel computes in.

    Attributes:
        name: the runtime's name for it.
        operator: the runtime's operator.
        kind: "convolution", "matmul", "attention", "recurrent", "add", "mul", "pool", "concat", "sigmoid" or
            "leaky-relu"; "other" for a node of the Program without a kernel of its name.
        integer: it computes in integers.
        module: path of the module that it comes from; "" where unknown.
        node: the Program's node; "" where unknown.
        reason: why it is float, as a rule of the runtime that it missed; "" for integers.
        macs: multiply-adds at the sizes of the sample inputs; 0 where unknown.
    """

    name: str
    operator: str
    kind: str
    integer: bool
    module: str
    node: str
    reason: str = ""
    macs: int = 0


@dataclass(frozen=True, slots=True)
class IntegerKernels:
    """The kernels of a graph that could be integer ones.

    Attributes:
        kernels: in the order of the runtime's graph.
    """

    kernels: tuple[KernelType, ...]

    @staticmethod
    def of(kernels: Iterable[KernelType], costs: Mapping[str, NodeCost]) -> IntegerKernels:
        """Give kernels their multiply-adds.

        Args:
            kernels: what a runtime has.
            costs: of the Program's nodes that do multiply-adds, by name; sizes are known.
        """
        kernels = list(kernels)
        parts = Counter(each.node for each in kernels if each.kind in _WORKING)
        given: Counter[str] = Counter()
        found = []
        for each in kernels:
            if each.kind in _WORKING and each.node in costs:
                total, count, index = int(costs[each.node].figures.macs), parts[each.node], given[each.node]
                given[each.node] += 1
                each = replace(each, macs=total * (index + 1) // count - total * index // count)
            found.append(each)
        for name, cost in costs.items():
            if name not in given:
                reason = _BRANCHES if "cond" in cost.operator else "no kernel of the runtime's graph bears its name"
                work = int(cost.figures.macs)
                found.append(KernelType("", cost.operator, "other", False, cost.module, name, reason, work))
        return IntegerKernels(tuple(found))

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Number of integer and of float kernels by kind, in the order of `KernelType.kind`'s first use."""
        kinds = dict.fromkeys(each.kind for each in self.kernels)
        found = Counter((each.kind, each.integer) for each in self.kernels)
        return {kind: (found[kind, True], found[kind, False]) for kind in kinds}

    @property
    def share(self) -> float | None:
        """The part of all multiply-adds that integer kernels do, from 0 to 1; None where these are not known."""
        total = sum(each.macs for each in self.kernels)
        return sum(each.macs for each in self.kernels if each.integer) / total if total else None

    @property
    def floats(self) -> list[KernelType]:
        """The float kernels, those with the most multiply-adds first."""
        return sorted((each for each in self.kernels if not each.integer), key=lambda each: -each.macs)

    def summary(self) -> list[str]:
        """Return lines for a report: the counts, and a few of the float kernels."""
        if not self.kernels:
            return ["integer kernels: none; there is nothing that could be one"]
        counts = ", ".join(f"{kind} {integer} of {integer + other}" for kind, (integer, other) in self.counts.items())
        share = "" if self.share is None else f"; {self.share:.1%} of the multiply-adds"
        floats = self.floats
        lines = [f"float: {self._label(each)}: {each.reason}" for each in floats[:_NAMED]]
        if len(floats) > _NAMED:
            lines.append(f"float: and {len(floats) - _NAMED} more, see artifact.integer_kernels()")
        return [f"integer kernels: {counts}{share}", *lines]

    def table(self) -> str:
        """Return all kernels as text, one a line."""
        lines = [f"{'MMAC':>10}  {'type':5}  {'kind':11}  {'operator':24}  node"]
        for each in self.kernels:
            label = f"{each.node or each.name} ({each.module})" if each.module else each.node or each.name
            lines.append(
                f"{each.macs / 1e6:10.3f}  {'int' if each.integer else 'float':5}  {each.kind:11}  {each.operator:24}"
                f"  {label}{f': {each.reason}' if each.reason else ''}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _label(self, kernel: KernelType) -> str:
        total = sum(each.macs for each in self.kernels)
        work = f", {kernel.macs / total:.1%} of the multiply-adds" if kernel.macs else ""
        module = f" in {kernel.module}" if kernel.module else ""
        return f"{kernel.node or kernel.name} ({kernel.operator}{module}{work})"


def macs_of(program: Program) -> dict[str, NodeCost]:
    """Return the nodes of `program` that do multiply-adds, by name, at the sizes of its sample inputs."""
    cost = program.cost().at_samples() if program.samples else program.cost()
    return {each.name: each for each in cost.nodes if isinstance(each.figures.macs, int) and each.figures.macs}
