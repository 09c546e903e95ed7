"""Whether a model computes every sample by itself: what an exit takes for granted."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from burnish.compiler import interpreter, structure
from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import placeholders
from burnish.compiler.numerics import worst_drift
from burnish.compiler.program import Program
from burnish.compiler.sizes import expression
from burnish.passes.canonical.types import shape_of

__all__ = ["check_independence"]

_SAME = 1e-3


def check_independence(program: Program, batch: sympy.Symbol, result: str) -> None:
    """Run a pair of samples, and each of them beside a copy of itself.

    Args:
        program: has sample inputs.
        batch: the number of samples.
        result: the output that has a row for every sample.

    Raises:
        OptionError: a result depends on the other sample.
    """
    pairs = {name: _pair(program, name, value, batch) for name, value in program.samples.items()}
    both = interpreter.run(program, pairs)[0]
    for row in (0, 1):
        doubled = {
            name: value[[row, row]] if isinstance(value, torch.Tensor) and value is not program.samples[name] else value
            for name, value in pairs.items()
        }
        alone = interpreter.run(program, doubled)[0]
        drift = worst_drift([_leaf(program, both, result)[row]], [_leaf(program, alone, result)[row]])
        if drift > _SAME:
            raise OptionError(
                "pass 'insert-exits': what the model gives for a sample depends on the others of its batch"
                f" (output {result!r} differs by {drift:.2g}): none of them can leave early"
            )


def _pair(program: Program, name: str, value: Any, batch: sympy.Symbol) -> Any:
    """Return two different rows of an input; the input itself where it has no row for every sample."""
    (graph,) = program.graphs.values()
    node = next((each for each in placeholders(graph) if each.target == name), None)
    shape = shape_of(node) or ()
    if not shape or expression(shape[0]) != batch:
        return value
    # The same sample twice would not show it: another one, the first one mirrored, or with noise.
    others = [
        *(value[row : row + 1] for row in range(1, len(value))),
        value[:1].flip(-1) if value.dim() > 1 else value[:1],
    ]
    if value.is_floating_point():
        noise = torch.randn(value[:1].shape, generator=torch.Generator().manual_seed(0))
        others.append(value[:1] + noise.to(value.dtype))
    other = next((each for each in others if not torch.equal(each, value[:1])), value[:1])
    return torch.cat([value[:1], other])


def _leaf(program: Program, outputs: Any, name: str) -> torch.Tensor:
    found: torch.Tensor = structure.flatten(program.signature.outputs, outputs, "the outputs")[name]
    return found
