"""prune-blocks: whole residual blocks are removed; their input is handed on instead.

A block `x + f(x)` matters as much as it turns x: 1 - cosine(x, x + f(x)), for every sample over all features, on
average over the data (Men et al., ShortGPT, arXiv 2403.03853; Gromov et al., arXiv 2403.17887). The blocks that matter
least go first. Blocks inside another one go with it, and count; one that would be too many is passed over.

What is a block, and what is nearly one, stands in `blocks`. Runs before `fuse`: operators that add a residual
themselves (`burnish.linear_act`, `burnish.conv_act`, the skip norms) hide the sums. Inputs, outputs and sizes stay.

Not handled: blocks that change the size of what they read; gates and concatenations around a block; how much blocks
matter once others have gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.data import calibration_inputs
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import name_of, output_of, placeholders
from burnish.compiler.interpreter import Observer, run_graph
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.operators import is_mutating
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.dce import erase_dead
from burnish.passes.pruning.blocks import Block, blocks_of
from burnish.passes.quantization.keeping import Keeping

__all__ = ["PruneBlocks"]

_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class PruneBlocks(Pass):
    """Remove the residual blocks that change least what passes through them.

    Attributes:
        ratio: the part of the blocks to remove, from 0 to less than 1, rounded down.
        keep: patterns as in a shell, `layers.0.*`, of nodes, weights or modules; blocks that hold one stay.
    """

    name: ClassVar[str] = "prune-blocks"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    ratio: float = 0.25
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise OptionError(f"pass 'prune-blocks': option 'ratio' must be from 0 to less than 1, but is {self.ratio}")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: a pattern of `keep` matches nothing in a block; the message names some nodes that there are.
            InputError: there are neither calibration data nor example inputs.
        """
        blocks = self._wanted(blocks_of(program, rewriter), rewriter)
        most = int(self.ratio * len(blocks) + 1e-6)
        if not most:
            hint = "" if blocks else " (sums that fuse has put into layers do not count: put prune-blocks before it)"
            context.notes.append(f"prune-blocks removed none of {len(blocks)} residual blocks{hint}")
            return
        with working("prune-blocks: how much each block matters", context.progress):
            importance = _importance(program, blocks, _data(program, context))
        chosen, count = _chosen(blocks, importance, most)
        # The first one first, so that what reads a sum is moved once.
        left: dict[fx.Node, fx.Node] = {}
        for block in (blocks[index] for index in sorted(chosen)):
            left[block.sum] = left.get(block.source, block.source)
            with rewriter.rewrite("prune-blocks"):
                rewriter.replace(block.sum, left[block.sum])
        if chosen:
            erase_dead(program, rewriter)
        names = ", ".join(f"{name_of(blocks[index].sum)} {importance[index]:.2g}" for index in chosen)
        note = f"prune-blocks removed {count} of {len(blocks)} residual blocks, by importance: {names or 'none fits'}"
        if context.calibration is None:
            note += " (on the example inputs: give calibration=)"
        context.notes.append(note)

    def _wanted(self, blocks: list[Block], rewriter: Rewriter) -> list[Block]:
        """Return the blocks that no pattern keeps."""
        keeping, found = Keeping(self.name, self.keep), []
        for block in blocks:
            refusals = []
            for node in (*block.inside, block.sum):
                try:
                    keeping.check(node)
                except Refusal as refusal:
                    refusals.append(str(refusal))
            if refusals:
                rewriter.skip(block.sum, refusals[0])
            else:
                found.append(block)
        keeping.finish()
        return found


def _data(program: Program, context: Context) -> Iterable[dict[str, Any]]:
    """Return inputs by name."""
    if context.calibration is not None:
        return calibration_inputs(program, context, _SAMPLES, "prune-blocks")
    if not program.samples:
        raise InputError(
            "pass 'prune-blocks' measures blocks on data, and there are none: give calibration=, an iterable of inputs,"
            " some tens of samples, --calibration FILE on the command line; or a Program with example inputs"
        )
    return [program.samples]


def _importance(program: Program, blocks: list[Block], data: Iterable[dict[str, Any]]) -> list[float]:
    """Return 1 - cosine(x, x + f(x)) of each block, on average over the samples."""
    meter = _Meter(blocks)
    for inputs in data:
        _run(program, inputs, meter)
    return [1 - total / max(count, 1) for total, count in zip(meter.totals, meter.samples, strict=True)]


class _Meter:
    """An observer of runs that adds up the cosines of blocks."""

    def __init__(self, blocks: list[Block]) -> None:
        self.ends = {block.sum: (index, block.source) for index, block in enumerate(blocks)}
        self.readers = Counter(block.source for block in blocks)
        self.totals, self.samples = [0.0] * len(blocks), [0] * len(blocks)
        # What blocks have still to be compared with, and by how many.
        self.held: dict[fx.Node, tuple[torch.Tensor, int]] = {}

    def __call__(self, node: fx.Node, value: Any) -> None:
        if node in self.ends:
            index, source = self.ends[node]
            before, waiting = self.held.pop(source)
            if waiting > 1:
                self.held[source] = before, waiting - 1
            cosines = _cosines(before, value)
            self.totals[index] += float(cosines.sum())
            self.samples[index] += len(cosines)
        if node in self.readers:
            self.held[node] = value, self.readers[node]


def _run(program: Program, inputs: dict[str, Any], observe: Observer) -> None:
    """Run all stages; unlike that of the interpreter, the observer sees their inputs too."""
    values, state = dict(inputs), dict[str, torch.Tensor]()
    with torch.no_grad():
        for graph in program.graphs.values():
            given = placeholders(graph)
            for node in given:
                observe(node, values[str(node.target)])
            values |= run_graph(program, graph, [values[str(node.target)] for node in given], state, observe)


def _cosines(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the cosine of the angle between two values for every sample, [samples]; 1 where they are equal."""
    rows = (-1, before[0].numel()) if before.dim() > 1 and len(before) else (1, -1)
    x, y = before.double().reshape(rows), after.double().reshape(rows)
    cosines = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    return torch.where((x == y).all(1), 1.0, cosines.nan_to_num(0.0))


def _chosen(blocks: list[Block], importance: list[float], most: int) -> tuple[list[int], int]:
    """Return the numbers of the blocks to remove, the least important first, and how many go, nested ones included."""
    removal = _Removal(blocks)
    order = sorted(range(len(blocks)), key=importance.__getitem__)
    return [index for index in order if removal.remove(index, most)], len(removal.gone)


class _Removal:
    """What dies with the blocks removed so far; counts readers, so that a block costs what stands in it.

    Attributes:
        gone: numbers of the blocks that are removed, or that nothing reads any more.
    """

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        self.number = {block.sum: index for index, block in enumerate(blocks)}
        self.readers = Counter[fx.Node]()
        live = set[fx.Node]()
        for graph in dict.fromkeys(block.sum.graph for block in blocks):
            live.add(output_of(graph))
            for node in reversed(graph.nodes):
                if node in live or _acts(node):
                    self.readers.update(node.all_input_nodes)
                    live.update(node.all_input_nodes)
        self.gone = {index for index, block in enumerate(blocks) if block.sum not in live}

    def remove(self, index: int, most: int) -> bool:
        """Remove a block, unless it is gone or more than `most` would be; tells whether it is removed now."""
        if index in self.gone:
            return False
        going, dropped = {index}, list[fx.Node]()
        # Whoever reads the sum reads the source in its place.
        waiting = [each for each in self.blocks[index].sum.all_input_nodes if each is not self.blocks[index].source]
        while waiting:
            node = waiting.pop()
            dropped.append(node)
            self.readers[node] -= 1
            if self.readers[node] or _acts(node):
                continue
            number = self.number.get(node)
            waiting += node.all_input_nodes if number not in self.gone else [self.blocks[number].source]
            if number is not None:
                going.add(number)
        if len(self.gone | going) > most:
            self.readers.update(dropped)
            return False
        self.gone |= going
        return True


def _acts(node: fx.Node) -> bool:
    """Tell whether a node does something though nothing reads it."""
    return node.op == "call_function" and is_mutating(node.target)
