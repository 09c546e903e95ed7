"""Which layers go back to float32 so that the drift on data stays within a limit.

Layers, or up to 64 groups of layers that follow each other, are ranked by the drift with that one alone in half
precision. As many of the worst go back as bisection finds to be needed; every answer is measured, none is predicted.
Bisection takes the drift to fall as layers go back: where it does not, more than needed may go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from burnish.compiler import interpreter
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.numerics import comparable, drift
from burnish.compiler.program import Program
from burnish.compiler.structure import flatten
from burnish.passes.precision.ranges import Key

__all__ = ["Drifts", "back_to_float"]

_GROUPS = 64
# Batches that layers are ranked on; the result is measured on all.
_RANKED_ON = 1


@dataclass
class Drifts:
    """Measures what putting operators back to float32 leaves of the drift.

    Args:
        program: the Program before.
        data: inputs by name.
        written: makes the Program in half precision, but for the operators given.

    Raises:
        InputError: no output is of floating point, so there is nothing to measure.
    """

    program: Program
    data: Sequence[Mapping[str, Any]]
    written: Callable[[frozenset[Key]], Program]
    expected: list[dict[str, torch.Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.expected = [_outputs(self.program, inputs) for inputs in self.data]
        if not self.expected[0]:
            raise InputError(
                "pass 'precision': option 'max_drift' needs an output of floating point, and there is none"
            )

    def __call__(self, kept: frozenset[Key], batches: int | None = None) -> float:
        """Return the largest drift of an output on a batch, on the first `batches`; all where None."""
        program, worst = self.written(kept), 0.0
        types = {name: sample.dtype for name, sample in program.samples.items() if isinstance(sample, torch.Tensor)}
        for inputs, expected in list(zip(self.data, self.expected, strict=True))[:batches]:
            given = {name: value.to(types[name]) if name in types else value for name, value in inputs.items()}
            found = _outputs(program, given)
            worst = max([worst, *(drift(comparable(found[name], each), each) for name, each in expected.items())])
        return worst


def back_to_float(layers: Sequence[Key], drifts: Drifts, most: float) -> tuple[frozenset[Key], float]:
    """Return which of `layers` have to be in float32 for a drift of at most `most`, and what the drift is then.

    Raises:
        OptionError: with all of them in float32 it is larger.
    """
    found = drifts(frozenset())
    if found <= most:
        return frozenset(), found
    size = -(-len(layers) // _GROUPS)
    groups = [frozenset(layers[at : at + size]) for at in range(0, len(layers), size)]
    every = frozenset(layers)
    alone = {group: drifts(every - group, _RANKED_ON) for group in groups}
    ranked = sorted(groups, key=alone.__getitem__, reverse=True)
    sets = [frozenset[Key]().union(*ranked[:count]) for count in range(len(ranked) + 1)]
    low, high, best = 0, len(ranked), drifts(every)
    if best > most:
        raise OptionError(
            f"pass 'precision': max_drift={most:g} cannot be met: with all layers in float32 the drift is {best:.1e},"
            " of inputs and outputs that are converted; keep them (io=keep), or allow more"
        )
    while high - low > 1:
        middle = (low + high) // 2
        found = drifts(sets[middle])
        if found <= most:
            high, best = middle, found
        else:
            low = middle
    return sets[high], best


def _outputs(program: Program, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the outputs of floating point by name."""
    result, _ = interpreter.run(program, inputs)
    found = flatten(program.signature.outputs, result, "outputs")
    return {name: each for name, each in found.items() if isinstance(each, torch.Tensor) and each.is_floating_point()}
