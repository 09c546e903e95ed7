"""Stages by hand: module paths, as in "embed + layers 0-3 | 4-7 | 8-11 + head".

A part is a module path, with * and ? as in a shell, or a path and a range of its numbered children; a range alone goes
on with the path before. It stands for all operators of these modules, and of those inside. What belongs to none goes
where what it reads is.

Not handled: modules that are called in several places of which a stage should have one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import fx

from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import name_of
from burnish.compiler.provenance import provenance_of
from burnish.passes.partition.units import Units

__all__ = ["by_hand"]

_NEARLY = re.compile(r"(\S+)\.(\d+-\d+)")
_RANGE = re.compile(r"(?:(\S+)\s+)?(\d+)(?:\s*-\s*(\d+))?")


def by_hand(units: Units, inputs: Sequence[Sequence[int]], text: str) -> list[list[int]]:
    """Return the units by stage.

    Args:
        units: of the graph.
        inputs: the units that every unit depends on directly.
        text: see the module.

    Raises:
        OptionError: the text cannot be read, names what is not there or a module twice, leaves a stage empty, or a
            stage would depend on a later one.
    """
    wanted = _patterns(text, sum(map(len, units.members)))
    used = set[str]()
    named = [{number for node in members for number in _stages_of(node, wanted, used)} for members in units.members]
    missing = [pattern for patterns in wanted for pattern in patterns if pattern not in used]
    if missing:
        ranged = _NEARLY.fullmatch(missing[0])
        hint = f" (a range is written '{ranged[1]} {ranged[2]}')" if ranged else ""
        raise OptionError(
            f"pass 'partition': no operator is in the module {missing[0]!r} of 'cuts'{hint}: there are {_some(units)}"
        )
    placed = _placed(units, inputs, named)
    stages = [[unit for unit, stage in enumerate(placed) if stage == index] for index in range(len(wanted))]
    for index, stage in enumerate(stages):
        if not stage:
            raise OptionError(f"pass 'partition': stage {index + 1} of 'cuts' has no operators of its own")
    return stages


def _patterns(text: str, operators: int) -> list[list[str]]:
    """Return the patterns of every stage."""
    found: list[list[str]] = []
    path = ""
    for part in text.split("|"):
        found.append([])
        for term in (each.strip() for each in part.split("+")):
            match = _RANGE.fullmatch(term)
            if match is None:
                if not term or " " in term:
                    raise OptionError(
                        f"pass 'partition': option 'cuts' must be stages with | between them, each of module paths and"
                        f" ranges with + between them, as in 'embed + layers 0-3 | 4-7', but has {term!r}"
                    )
                found[-1].append(term)
                continue
            path = match[1] or path
            first, last = int(match[2]), int(match[3] or match[2])
            if not path or last < first:
                reason = "has no module path before it" if not path else "ends before it starts"
                raise OptionError(f"pass 'partition': the range {term!r} in 'cuts' {reason}")
            if last - first >= operators:
                raise OptionError(
                    f"pass 'partition': the range {term!r} in 'cuts' names more modules than the model has operators,"
                    f" {operators}"
                )
            found[-1] += [f"{path}.{number}" for number in range(first, last + 1)]
    return found


def _stages_of(node: fx.Node, wanted: Sequence[Sequence[str]], used: set[str]) -> set[int]:
    """Return the stages whose patterns match the modules that a node came from; add these patterns to `used`."""
    provenance = provenance_of(node)
    found = set[int]()
    for path in {origin.module for origin in provenance.origins} if provenance is not None else ():
        parts = path.split(".")
        # The innermost module that is named counts.
        for length in range(len(parts), 0, -1):
            around = ".".join(parts[:length])
            matching = [
                (number, each)
                for number, patterns in enumerate(wanted)
                for each in patterns
                if fnmatchcase(around, each)
            ]
            if matching:
                stages = sorted({number for number, _ in matching})
                if len(stages) > 1:
                    raise OptionError(
                        f"pass 'partition': {around!r} is in stages {stages[0] + 1} and {stages[1] + 1} of 'cuts':"
                        " leave it in one of them"
                    )
                found.update(number for number, _ in matching)
                used.update(each for _, each in matching)
                break
    return found


def _placed(units: Units, inputs: Sequence[Sequence[int]], named: Sequence[Collection[int]]) -> list[int]:
    """Return the stage of every unit: one that it is named in, or that of what it reads."""
    earliest: dict[int, int] = {}
    # What reads nothing that is placed goes to the first stage that reads it, directly or not.
    for unit in reversed(range(len(inputs))):
        if named[unit]:
            earliest[unit] = min(named[unit])
        for each in inputs[unit] if unit in earliest else ():
            earliest[each] = min(earliest[unit], earliest.get(each, earliest[unit]))
    placed: list[int] = []
    for unit, read in enumerate(inputs):
        before, source = max(((placed[each], each) for each in read), default=(0, unit))
        # A node merged of several modules may stand with any of them.
        possible = [stage for stage in named[unit] if stage >= before]
        if named[unit] and not possible and any(map(_is_layer, units.members[unit])):
            reader, value = (name_of(units.members[each][-1]) for each in (unit, source))
            wanted = max(named[unit])
            raise OptionError(
                f"pass 'partition': 'cuts' is cyclic: {reader} in stage {wanted + 1} reads {value} of stage"
                f" {before + 1}: put {value} into stage {wanted + 1}, or {reader} into stage {before + 1}"
            )
        # What merely came from a module, as the merging of exits at the end, goes behind what it reads.
        placed.append(min(possible) if possible else before if read else earliest.get(unit, 0))
    return placed


def _is_layer(node: fx.Node) -> bool:
    """Tell whether a node is named after the module that it came from."""
    provenance = provenance_of(node)
    origins = provenance.origins if provenance is not None else ()
    return any(origin.module and name_of(node).startswith(origin.module) for origin in origins)


def _some(units: Units) -> str:
    modules = dict.fromkeys(
        origin.module.split(".")[0]
        for members in units.members
        for node in members
        if (provenance := provenance_of(node)) is not None
        for origin in provenance.origins
        if origin.module
    )
    return ", ".join(list(modules)[:20]) or "none"
