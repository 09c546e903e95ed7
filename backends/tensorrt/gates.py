"""Early exits as stages: engines, and between them gates that PyTorch runs on the GPU.

`insert-exits` writes plain dataflow: `nonzero` finds the samples that stay, `index_select` takes their rows, the rest
of the network computes these, `index_copy` puts the results back. Its sizes depend on the data, and an engine would
have to be built for all of them. So the graph is cut where rows are chosen and where they are put back: a
gate compacts the rows, and the engine behind it runs on as many as there are, or not at all.

Not handled: gates that read constants; exits of whole batches, a `cond`, which TensorRT runs itself; Programs with
exits that update buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx

from burnish.backends.readiness import Range
from burnish.backends.tensorrt.sizes import check_samples
from burnish.compiler.errors import BackendError
from burnish.compiler.expressions import is_unbacked
from burnish.compiler.graphs import calls, node_order, output_of, placeholders
from burnish.compiler.operators import is_random, operator_name
from burnish.compiler.printer import symbol_names
from burnish.compiler.program import Program
from burnish.compiler.sizes import expression
from burnish.compiler.stages import stage_graphs

__all__ = ["Part", "cut_at_gates", "stage_ranges"]

_CHOICE, _PUT_BACK = "aten.nonzero", "aten.index_copy"
_SAME_NUMBERS = frozenset({"aten.select.int", "aten.squeeze.dim", "aten.view", "aten.reshape", "aten.alias"})


@dataclass(frozen=True, slots=True)
class Part:
    """What a stage is.

    Attributes:
        is_gate: it chooses rows or puts them back.
        origin: number of the stage of the Program before, which says on which GPU it is.
    """

    is_gate: bool
    origin: int


def cut_at_gates(program: Program) -> tuple[Program, dict[str, Part]]:
    """Return a Program whose stages are engines and gates, and which stage is what; itself where it has no exits.

    Raises:
        BackendError: stages of its own make values of one name.
    """
    chosen = _numbers_of_rows(program)
    has_exits = any(
        operator_name(node.target) == _PUT_BACK and not chosen.isdisjoint(node.all_input_nodes)
        for graph in program.graphs.values()
        for node in calls(graph)
    )
    if not has_exits or program.mutable_constants():
        return program, {name: Part(False, index) for index, name in enumerate(program.graphs)}
    graphs: dict[str, fx.Graph] = {}
    parts: dict[str, Part] = {}
    for index, (name, graph) in enumerate(program.graphs.items()):
        levels = _levels(graph, chosen)
        groups: dict[str, list[fx.Node]] = {}
        members: dict[int, list[fx.Node]] = {}
        for node, level in levels.items():
            members.setdefault(level, []).append(node)
        for level in sorted(members):
            kind = f"gate{level // 2 + 1}" if level % 2 else f"stage{level // 2 + 1}"
            key = kind if len(program.graphs) == 1 else f"{name}-{kind}"
            groups[key] = members[level]
            parts[key] = Part(bool(level % 2), index)
        graphs |= stage_graphs(replace(program, graphs={name: graph}), groups)
    made = [each for graph in graphs.values() for each in output_of(graph).args[0]]  # type: ignore[union-attr]
    if len(set(made)) < len(made):
        twice = next(each for each in made if made.count(each) > 1)
        raise BackendError(f"two stages make a value called {twice!r}: put insert-exits without partition, or reverse")
    return replace(program, graphs=graphs), parts


def stage_ranges(
    program: Program, cut: Program, stages: Mapping[str, Program], given: Mapping[str, Range]
) -> dict[str, dict[str, Range]]:
    """Return the sizes of every stage's symbols, by stage and by the name of the symbol there.

    As many rows as there are samples may stay behind an exit, and one at least where the stage runs.

    Args:
        program: as the user knows it, whose symbols are named in `given`.
        cut: the same in several graphs.
        stages: these as Programs of their own.
        given: sizes by symbol that the user gave; of others the samples' count.

    Raises:
        OptionError: the samples have a size that is not in `given`.
    """
    known, named = _sample_ranges(cut), symbol_names(program).names
    check_samples({named[symbol]: sizes for symbol, sizes in known.items() if symbol in named}, given)
    known |= {symbol: given[name] for symbol, name in named.items() if name in given}
    found: dict[str, dict[str, Range]] = {}
    for name, graph in cut.graphs.items():
        for node in calls(graph):
            if operator_name(node.target) == _CHOICE:
                _bound(node, known)
        names = symbol_names(stages[name]).names
        (own,) = stages[name].graphs.values()
        # Of inputs whose values become sizes the range stands under their own name.
        ranges = {str(node.target): given[str(node.target)] for node in placeholders(own) if node.target in given}
        for node, twin in zip(placeholders(graph), placeholders(own), strict=True):
            sample = stages[name].samples.get(str(twin.target))
            for index, (size, same) in enumerate(zip(_sizes(node), _sizes(twin), strict=True)):
                if isinstance(same, sympy.Symbol) and size in known:
                    ends, count = known[size], sample.shape[index] if isinstance(sample, torch.Tensor) else 0
                    usual = min(max(count, ends.least), ends.most) if is_unbacked(size) and count else ends.usual
                    ranges[names[same]] = Range(ends.least, usual, ends.most)
        found[name] = ranges
    return found


def _numbers_of_rows(program: Program) -> set[fx.Node]:
    """Return the values that hold the numbers of chosen rows, those that come from an earlier stage too."""
    found: set[fx.Node] = set()
    names: set[str] = set()
    for graph in program.graphs.values():
        found.update(node for node in placeholders(graph) if str(node.target) in names)
        for node in calls(graph):
            name = operator_name(node.target)
            if name == _CHOICE or (name in _SAME_NUMBERS and node.all_input_nodes[0] in found):
                found.add(node)
        outputs: dict[str, fx.Node] = output_of(graph).args[0]  # type: ignore[assignment]
        names.update(name for name, node in outputs.items() if node in found)
    return found


def _levels(graph: fx.Graph, chosen: set[fx.Node]) -> dict[fx.Node, int]:
    """Return the number of the stage of every operator: even ones are engines, odd ones gates.

    What depends on no input, and sizes, belong to no stage: they are copied.
    """
    levels: dict[fx.Node, int] = dict.fromkeys(placeholders(graph), 0)
    placed: dict[fx.Node, int] = {}
    for node in node_order(graph):
        read = [levels[each] for each in node.all_input_nodes if each in levels]
        if not read and not is_random(node):
            continue
        level = max(read, default=0)
        value = node.meta.get("val")
        if not isinstance(value, (torch.Tensor, tuple, list)):
            levels[node] = level
            continue
        is_gate = node in chosen or not chosen.isdisjoint(node.all_input_nodes)
        levels[node] = placed[node] = level + (level % 2 != is_gate)
    return placed


def _bound(node: fx.Node, known: dict[Any, Range]) -> None:
    """Note how many rows `nonzero` may find."""
    (mask,) = node.all_input_nodes
    ends = [known.get(size) if isinstance(size, sympy.Symbol) else _fixed(size) for size in _sizes(mask)]
    rows = _sizes(node)[0]
    if isinstance(rows, sympy.Symbol) and len(ends) == 1 and ends[0] is not None:
        known[rows] = Range(1, ends[0].usual, ends[0].most)


def _fixed(size: Any) -> Range | None:
    return Range(int(size), int(size), int(size)) if isinstance(size, (int, sympy.Integer)) else None


def _sample_ranges(program: Program) -> dict[Any, Range]:
    found: dict[Any, Range] = {}
    for graph in program.graphs.values():
        for node in placeholders(graph):
            sample = program.samples.get(str(node.target))
            for index, size in enumerate(_sizes(node)):
                if isinstance(size, sympy.Symbol) and isinstance(sample, torch.Tensor):
                    count = int(sample.shape[index])
                    found.setdefault(size, Range(min(1, count), count, count))
    return found


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(expression(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()
