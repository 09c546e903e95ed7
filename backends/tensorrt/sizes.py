"""The inputs and outputs of a graph with their sizes: what a profile makes of them, and what a call does.

A size is a number, an expression of symbols ("B", "2*B"), or "" where nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import sympy
import torch

from burnish.backends.onnx.model import DTYPES
from burnish.backends.readiness import Range
from burnish.compiler.conditions import parse_size
from burnish.compiler.errors import OptionError, TextError

__all__ = ["Ends", "Port", "check_samples", "profile_shapes"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its element type, and its sizes."""

    dtype: torch.dtype
    sizes: tuple[int | str, ...]

    @staticmethod
    def of(value: onnx.ValueInfoProto) -> Port:
        """Return what a graph says of its input or output."""
        kind = value.type.tensor_type
        sizes = tuple(each.dim_value if each.HasField("dim_value") else each.dim_param for each in kind.shape.dim)
        return Port(DTYPES[kind.elem_type], sizes)

    def is_dynamic(self) -> bool:
        """Tell whether a size is no number."""
        return any(isinstance(size, str) for size in self.sizes)


@dataclass(frozen=True, slots=True)
class Ends:
    """Inputs and outputs of a graph by name, in order."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]

    @staticmethod
    def of(graph: onnx.GraphProto) -> Ends:
        """Return the ends of a graph whose initializers are no inputs."""
        return Ends(
            {each.name: Port.of(each) for each in graph.input}, {each.name: Port.of(each) for each in graph.output}
        )

    def output_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape | None]:
        """Return the shapes of the outputs of a call, None for one that the inputs' shapes do not tell."""
        values: dict[str, int] = {}
        for name, port in self.inputs.items():
            for index, (size, given) in enumerate(zip(port.sizes, shapes[name], strict=True)):
                if isinstance(size, str):
                    values.setdefault(size or f"{name}.{index}", given)
        found: dict[str, Shape | None] = {}
        for name, port in self.outputs.items():
            sizes = [each if isinstance(each, int) else _value(each, values) for each in port.sizes]
            known = tuple(each for each in sizes if each is not None)
            found[name] = known if len(known) == len(sizes) else None
        return found


def profile_shapes(name: str, sizes: Sequence[int | str], ranges: Mapping[str, Range]) -> tuple[Shape, Shape, Shape]:
    """Return the least, usual and greatest shape of an input.

    Args:
        name: of the input.
        sizes: its sizes.
        ranges: of every symbol in them, and of `name.index` for a size without one.
    """
    ends = [{key: getattr(each, end) for key, each in ranges.items()} for end in ("least", "usual", "most")]

    def shape(values: Mapping[str, int]) -> Shape:
        found = []
        for index, size in enumerate(sizes):
            value = size if isinstance(size, int) else _value(size or f"{name}.{index}", values)
            assert value is not None, f"{name}: the size {size!r} has no range"  # `check` has found those
            found.append(value)
        return tuple(found)

    least, usual, most = map(shape, ends)
    return least, usual, most


def _value(size: str, values: Mapping[str, int]) -> int | None:
    """Return the number that a size is, given numbers by symbol; None where they do not say."""
    if not size:
        return None
    if size in values:
        return values[size]
    try:
        expression: Any = parse_size(size)
    except TextError:
        return None
    found = expression.xreplace(
        {each: sympy.Integer(values[each.name]) for each in expression.free_symbols if each.name in values}
    )
    return int(found) if found.is_Integer else None


def check_samples(samples: Mapping[str, Range], given: Mapping[str, Range]) -> None:
    """Check that engines take the example inputs, with which they are compared once they are built.

    Args:
        samples: the sizes of the example inputs.
        given: the user's profiles.

    Raises:
        OptionError: a size is outside of its profile.
    """
    for name, taken in given.items():
        if name not in samples:
            continue
        size = samples[name].usual
        if not taken.least <= size <= taken.most:
            raise OptionError(
                f"option 'profiles' of backend 'tensorrt': the example inputs have {name}={size}, which"
                f" {name}={taken.least}:{taken.usual}:{taken.most} does not take, and the engine is compared on them:"
                " give inputs of a size within the range, or a wider range"
            )
