"""precision: layers in half precision, by explicit casts, and what must stay float32 in islands between them.

1. Layers, products of matrices, attention and embeddings compute in half precision. Softmax, norms, reductions,
   functions that magnify rounding, quantizers and operators without a rule stay float32; see `kinds`.
2. What reads or makes a value that half precision cannot hold stays float32; see `ranges`.
3. What may be in either is placed so that casts are fewest; see `placement`.
4. Constants are stored once. Inputs and outputs keep their types, or are converted too.
5. With a limit on the drift, the layers that cause most of it go back to float32; see `drift_limit`.

Not handled: float64, complex numbers, and operators that mix them with float32; the type in which kernels accumulate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from burnish.compiler.context import Context
from burnish.compiler.data import calibration_inputs
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import name_of
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.operators import operator_name
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.rewriter import Rewriter
from burnish.passes.precision.drift_limit import Drifts, back_to_float
from burnish.passes.precision.placement import cheapest
from burnish.passes.precision.ranges import Key, Limits, Reach, measured, troubles
from burnish.passes.precision.units import Units
from burnish.passes.precision.writing import Writer

__all__ = ["Precision"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Data that were not measured reach farther than those that were.
_HEADROOM = 8


@dataclass(frozen=True, kw_only=True)
class Precision(Pass):
    """Compute in half precision where that is safe, with explicit casts and islands of float32.

    Attributes:
        dtype: fp16 or bf16.
        max_drift: put layers back to float32 until the drift on samples and calibration data is at most this.
        max_range: magnitude above which a measured value stays float32; an eighth of the type's largest by default.
        io: keep the types of inputs and outputs, or convert those of float32.
        samples: how much of the calibration data to use at the most.
    """

    name: ClassVar[str] = "precision"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    dtype: Literal["fp16", "bf16"] = "fp16"
    max_drift: float | None = None
    max_range: float | None = None
    io: Literal["keep", "convert"] = "keep"
    samples: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_drift", "max_range"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"pass {self.name!r}: option {name!r} must be a number above 0, but is {value}")
        if self.samples < 1:
            raise OptionError(f"pass {self.name!r}: option 'samples' must be 1 or more, but is {self.samples}")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: the target lacks the type, or max_drift cannot be met.
            InputError: max_drift has no data to measure on, or the data do not fit.
        """
        self._check_target(context)
        data = self._data(program, context)
        if self.max_drift is not None and not data:
            raise InputError(
                f"pass {self.name!r}: option 'max_drift' needs data to measure on: give calibration=, or capture the"
                " program with example inputs"
            )
        job = _Job(self, program, self._reach(program, data, context))
        units, low = job.placed(program, frozenset())
        if not units.wanted:
            context.notes.append(f"precision found nothing to compute in {self.dtype}: {_nothing(program, units)}")
            _explain(units, rewriter)
            return
        kept: frozenset[Key] = frozenset()
        if self.max_drift is not None:
            with working("measuring drift", context.progress):
                drifts = Drifts(program, data, job.written)
                kept, drift = back_to_float([_key(program, node) for node in units.wanted], drifts, self.max_drift)
            context.notes.append(
                f"precision: drift {drift:.1e} on {len(data)} batches, at most {self.max_drift:g} wanted;"
                f" {len(kept)} of {len(units.wanted)} layers are back in float32 for it"
            )
            units, low = job.placed(program, kept)
        writer = Writer(units, low, rewriter)
        _explain(units, rewriter)
        writer.write()
        context.notes.append(_summary(self.dtype, units, low, writer.casts))

    def _check_target(self, context: Context) -> None:
        if _DTYPES[self.dtype] not in context.target.dtypes:
            raise OptionError(
                f"pass {self.name!r}: {context.target.name} has no kernels for {self.dtype}: take the other type, or"
                " another backend or runtime (onnx{runtime=openvino} and torchscript compute in bf16)"
            )

    def _data(self, program: Program, context: Context) -> list[dict[str, Any]]:
        """Return inputs by name: the samples, and the calibration data where there are some."""
        data = [program.samples] if program.samples else []
        if context.calibration is not None:
            data += calibration_inputs(program, context, self.samples, self.name)
        return data

    def _reach(self, program: Program, data: list[dict[str, Any]], context: Context) -> Reach:
        if not data:
            context.notes.append("precision: no value was measured, as there are no samples and no calibration data")
            return Reach({})
        with working("measuring ranges", context.progress):
            return measured(program, data)


@dataclass(frozen=True)
class _Job:
    """The pass on copies of one Program."""

    options: Precision
    program: Program
    reach: Reach

    def placed(self, program: Program, kept: Collection[Key]) -> tuple[Units, list[bool]]:
        """Return the units of a copy, and for each whether it is in half precision."""
        dtype = _DTYPES[self.options.dtype]
        largest = self.options.max_range or torch.finfo(dtype).max / _HEADROOM
        limits = Limits.of(dtype, largest)
        found = troubles(program, self.reach, limits)
        units = Units(program, dtype, limits, found, kept, self.options.io == "convert")
        return units, cheapest(units.pins(), units.edges())

    def written(self, kept: Collection[Key]) -> Program:
        """Return a copy of the Program in half precision, but for the operators `kept`."""
        copy = self.program.copy()
        Writer(*self.placed(copy, kept), Rewriter(copy, self.options.name)).write()
        return copy


def _key(program: Program, node: Any) -> Key:
    label = next(label for label, graph in program.all_graphs() if graph is node.graph)
    return label, name_of(node)


def _nothing(program: Program, units: Units) -> str:
    """Say why no operator gains."""
    if not units.values:
        return "the program has no float32"
    return "its layers have to stay float32" if units.reasons else "it has no layer in float32"


def _explain(units: Units, rewriter: Rewriter) -> None:
    for node, reason in units.reasons.items():
        rewriter.skip(node, reason)


def _summary(dtype: str, units: Units, low: list[bool], casts: int) -> str:
    """Return what the report says: operators in each type, casts, and islands with their reasons."""
    count = sum(units.is_low(low, node) for node in units.reads)
    why = Counter(
        (operator_name(node.target), reason if reason[0] != "%" else "values that half precision cannot hold")
        for node, reason in units.reasons.items()
    )
    islands = ", ".join(f"{number} {name} ({reason})" for (name, reason), number in why.most_common())
    said = f"; islands: {islands}" if islands else ""
    return f"precision: {count} operators in {dtype}, {len(units.reads) - count} in float32, {casts} casts{said}"
