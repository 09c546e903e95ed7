"""Sensitivity: what each quantizer of a Program costs when it alone quantizes.

The metric is computed once with nothing quantized, once with everything, and once for every quantizer, or layer, alone,
so it takes as many runs of the metric as there are quantizers. Programs run in eager PyTorch.

Not handled: weights of which the floats are gone (see `quantizers`): they are integers in every run, and a note says
so. What two quantizers cost together may be more or less than the sum.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import InputError, MissingDependencyError, OptionError
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.passes.quantization.quantizers import Quantizer, fixed_weights, quantizers, with_only

__all__ = ["Sensitivity", "SensitivityRow", "sensitivity"]

_COLORS = {"activation": "tab:blue", "weight": "tab:orange", "layer": "tab:green"}
_PLOTTED = 40


def sensitivity(
    program: Program,
    metric: Callable[[Program], Any],
    *,
    by: Literal["quantizer", "layer"] = "quantizer",
    progress: bool = True,
) -> Sensitivity:
    """Measure the drop of `metric` that each quantizer of `program` causes alone.

    `burnish.sensitivity(burnish.compile(model, "default,quantize", ...).program, accuracy)`, for one; print the result.

    Args:
        program: a quantized Program, fresh from the pass: one that was saved has lost the floats of its weights, which
            then are integers throughout.
        metric: gets a Program, to be called as the model is, and returns a number; higher is better.
        by: one row for every quantizer (the pair behind an activation; the integers of a weight, with what quantizing
            did to the bias), or for every operator with all the quantizers that it reads.
        progress: show progress on a terminal.

    Raises:
        InputError: this is no Program, nothing in it is quantized, or the metric returns something else than a finite
            number.
        OptionError: `by` is neither.
    """
    if by not in ("quantizer", "layer"):
        raise OptionError(f"by must be 'quantizer' or 'layer', but is {by!r}")
    if not isinstance(program, Program):
        raise InputError(f"sensitivity takes a Program, not a {type(program).__name__}: give it compiled.program")
    every = quantizers(program)
    if not every:
        raise InputError("the program has no quantizer to bypass: run the pass quantize, or quantize-dynamic, first")
    groups = _by_layer(every) if by == "layer" else [((each.name, each.kind), [each]) for each in every]

    def measure(label: str, measured: Program) -> float:
        with working(f"sensitivity: {label}", progress):
            return _number(metric(measured))

    unquantized = measure("nothing quantized", with_only(program, every, ()))
    quantized = measure("everything quantized", with_only(program, every, every))
    rows = []
    for index, ((name, kind), kept) in enumerate(groups):
        found = measure(f"{index + 1} of {len(groups)}, {name}", with_only(program, every, kept))
        modules = dict.fromkeys(each.module for each in kept if each.module)
        operators = dict.fromkeys(operator for each in kept for operator in each.operators)
        keep = [name] if kind == "layer" else [each for quantizer in kept for each in quantizer.keep]
        rows.append(
            SensitivityRow(
                name, kind, ", ".join(modules), tuple(operators), tuple(dict.fromkeys(keep)), found, unquantized - found
            )
        )
    rows.sort(key=lambda row: -row.drop)
    fixed = fixed_weights(program, every)
    return Sensitivity(unquantized, quantized, tuple(rows), (_note(fixed),) if fixed else ())


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """What one quantizer, or layer, costs alone.

    Attributes:
        name: of the activation or weight, or of the layer: its weight, or the operator where it has none.
        kind: activation, weight, or layer.
        module: path of the modules that it comes from, "" when unknown.
        operators: what computes with it.
        keep: names for the option `keep` of the pass that leave these operators float; of an activation also what
            computes it in integers, where the target wants the results of these as integers.
        metric: with this alone.
        drop: how much less than with nothing quantized; negative where quantizing helps.
    """

    name: str
    kind: Literal["activation", "weight", "layer"]
    module: str
    operators: tuple[str, ...]
    keep: tuple[str, ...]
    metric: float
    drop: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The rows, the largest drop first; `str()` is a table.

    Attributes:
        unquantized: the metric with nothing quantized.
        quantized: the metric with everything quantized.
        rows: what each quantizer, or layer, costs alone.
        notes: what to know of the figures.
    """

    unquantized: float
    quantized: float
    rows: tuple[SensitivityRow, ...]
    notes: tuple[str, ...] = ()

    def table(self, most: int = 30) -> str:
        """Return the `most` largest drops as text."""
        shown = self.rows[:most]
        width = max(len(row.name) for row in shown)
        lines = [f"{'drop':>11}  {'metric':>11}  {'kind':10}  {'name':{width}}  read by"]
        for row in shown:
            numbers = f"{row.drop:11.4g}  {row.metric:11.6g}"
            lines.append(f"{numbers}  {row.kind:10}  {row.name:{width}}  {', '.join(row.operators)}".rstrip())
        if len(self.rows) > most:
            lines.append(f"... and {len(self.rows) - most} more")
        drop, total = self.unquantized - self.quantized, sum(row.drop for row in self.rows)
        lines.append(
            f"nothing quantized {self.unquantized:.6g}, everything {self.quantized:.6g}: a drop of {drop:.4g};"
            f" the drops alone add up to {total:.4g}"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.table()

    def keep(self, count: int | None = None, *, max_drop: float | None = None) -> tuple[str, ...]:
        """Return names for `quantize{keep=[...]}` that leave the worst operators float.

        Args:
            count: take so many rows.
            max_drop: take every row that drops the metric by more than this.

        Raises:
            OptionError: neither is given, or both.
        """
        if (count is None) == (max_drop is None):
            raise OptionError("keep needs either count, how many rows to take, or max_drop, what a row may cost")
        rows = self.rows[:count] if max_drop is None else [row for row in self.rows if row.drop > max_drop]
        return tuple(dict.fromkeys(name for row in rows for name in row.keep))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a chart of the 40 largest drops, `.svg`, `.png` or `.pdf`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            OptionError: the file has another ending.
            InputError: the file cannot be written.
        """
        suffix = Path(path).suffix
        if suffix not in (".svg", ".png", ".pdf"):
            raise OptionError(f"{os.fspath(path)}: a plot ends in .svg, .png or .pdf")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError("a plot needs matplotlib: pip install 'burnish[plot]'") from error
        rows = self.rows[:_PLOTTED][::-1]
        figure = Figure(figsize=(8, 1.2 + 0.22 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for kind, color in _COLORS.items():
            places = [index for index, row in enumerate(rows) if row.kind == kind]
            if places:
                axes.barh(places, [rows[index].drop for index in places], color=color, label=kind)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel("drop of the metric, alone")
        axes.set_title(f"everything quantized: {self.unquantized - self.quantized:.4g}", fontsize=9)
        axes.legend(fontsize=7, loc="lower right")
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            figure.savefig(file, format=suffix[1:])


def _by_layer(every: list[Quantizer]) -> list[tuple[tuple[str, Literal["layer"]], list[Quantizer]]]:
    """Return the quantizers that each operator reads, by the name under which it can be kept."""
    groups: dict[str, list[Quantizer]] = {}
    for each in every:
        for name in each.layers:
            groups.setdefault(name, []).append(each)
    return [((name, "layer"), found) for name, found in groups.items()]


def _number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"the metric must return a number, but returned a {type(value).__name__}") from error
    if not math.isfinite(found):
        raise InputError(f"the metric must return a finite number, but returned {found}")
    return found + 0.0  # -0.0 is 0


def _note(fixed: list[str]) -> str:
    some = ", ".join(fixed[:3]) + (", ..." if len(fixed) > 3 else "")
    return f"{len(fixed)} constants are integers in every run, as their floats are gone: {some}"
