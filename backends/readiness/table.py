"""The table of what TensorRT's parser takes (`tensorrt.toml`), for one release.

A release that the table does not list is refused: nothing is known of it.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.compiler.errors import OptionError

__all__ = ["Restriction", "Table", "releases", "table_of"]

_FILE = Path(__file__).with_name("tensorrt.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """Something that TensorRT does not take of operators which it has; one kind of restriction each.

    Attributes:
        operators: those concerned.
        attribute: its value must be among `allowed`, or all its numbers `every`.
        halves: an attribute that lists something for both ends or directions, which must be the same for both.
        fixed: sizes of the first input that must be numbers: "all" of them, or that along the attribute "axis".
        absent: attributes that must not be given.
        constant: inputs that must be known when the engine is built, and equal `value` where that is given.
        needed: inputs that must be given.
        unused_inputs: inputs that must not be given.
        unused_outputs: results that must not be asked for.
        input: this input must have a rank of `ranks`, a type of `dtypes`, or a value below `below`.
        until: the release that lifts it.
        fix: what would mend it.
    """

    operators: tuple[str, ...]
    attribute: str = ""
    allowed: tuple[Any, ...] = ()
    every: int | None = None
    halves: str = ""
    fixed: str = ""
    absent: tuple[str, ...] = ()
    constant: tuple[int, ...] = ()
    value: int | None = None
    needed: tuple[int, ...] = ()
    unused_inputs: tuple[int, ...] = ()
    unused_outputs: tuple[int, ...] = ()
    input: int = 0
    ranks: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    below: int | None = None
    until: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """What one release takes.

    Attributes:
        release: "10.15".
        oldest: the oldest opset that it reads.
        opset: the newest.
        types: element types of a network's tensors.
        ends: element types of a network's inputs and outputs alone.
        operators: element types of the main operand, by operator.
        later: first release by operator that came after this one.
        refused: operators that it is known not to support.
        fixes: what would mend an unsupported operator.
        restrictions: by operator.
        shape_operands: inputs whose values are sizes, by operator.
        shape_operators: through which a size may come from an input.
        largest_shape: elements of a tensor of sizes.
        layers: operators with weights that compute in int8.
        readers: operators that compute in int8 behind a pair, or move its integers.
        movers: of those the ones that only move.
    """

    release: str
    oldest: int
    opset: int
    types: frozenset[str]
    ends: frozenset[str]
    operators: Mapping[str, frozenset[str]]
    later: Mapping[str, str]
    refused: frozenset[str]
    fixes: Mapping[str, str]
    restrictions: Mapping[str, tuple[Restriction, ...]]
    shape_operands: Mapping[str, tuple[int, ...]]
    shape_operators: frozenset[str]
    largest_shape: int
    layers: frozenset[str]
    readers: frozenset[str]
    movers: frozenset[str]


def releases() -> list[str]:
    """Return the releases that the table knows, oldest first."""
    return list(_data()["versions"])


@functools.cache
def table_of(release: str) -> Table:
    """Return the table for a release.

    Args:
        release: "10.15", or a major release, "11", which stands for the oldest of it.

    Raises:
        OptionError: the table does not know it.
    """
    known = releases()
    exact = release if release in known else next((each for each in known if each.startswith(f"{release}.")), None)
    if exact is None:
        raise OptionError(f"nothing is known of TensorRT {release}: there are {', '.join(known)}")
    data = _data()
    later = {name: first for name, first in data["since"].items() if _newer(first, exact)}
    operators = {name: _types(words, data) for words, names in data["operators"].items() for name in names}
    restrictions: dict[str, tuple[Restriction, ...]] = {}
    for entry in data["restriction"]:
        fields: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in entry.items()}
        each = Restriction(**fields)
        if not each.until or _newer(each.until, exact):
            restrictions.update({name: (*restrictions.get(name, ()), each) for name in each.operators})
    shapes, pairs = data["shapes"], data["pairs"]
    return Table(
        release=exact,
        oldest=data["opsets"]["oldest"],
        opset=data["versions"][exact],
        types=_types(" ".join(data["network"]["types"]), data),
        ends=frozenset(data["network"]["ends"]),
        operators={name: types for name, types in operators.items() if name not in later},
        later=later,
        refused=frozenset(data["refused"]["operators"]),
        fixes=data["fixes"],
        restrictions=restrictions,
        shape_operands={name: tuple(indices) for name, indices in shapes["operands"].items()},
        shape_operators=frozenset(shapes["through"]),
        largest_shape=shapes["largest"],
        layers=frozenset(pairs["layers"]),
        readers=frozenset(pairs["readers"]),
        movers=frozenset(pairs["movers"]),
    )


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def _types(words: str, data: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(each for word in words.split() for each in data["types"][word])


def _newer(release: str, than: str) -> bool:
    """Tell whether `release` came after `than`."""
    first, second = ([int(part) for part in each.split(".")] for each in (release, than))
    return first > second
