"""The report of a compilation: what every pass did, what was lowered, and how far the result is from the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from burnish.compiler.pipeline import PassRecord
from burnish.compiler.program import Program

__all__ = ["PassRow", "Report", "row_of"]

_HEADINGS = ("pass", "nodes", "parameters", "MFLOP", "MB moved", "drift", "seconds", "")


@dataclass(frozen=True, slots=True)
class PassRow:
    """One line of the report: the Program after a pass.

    Attributes:
        label: the pass, "capture" for the first line.
        nodes: operator nodes.
        parameters: elements of all constants.
        flops: floating-point operations at the sample inputs' sizes (a multiply-add is two); sizes that depend on
            data count as 0, here and for bytes.
        bytes: bytes read and written by all operators at the sample inputs' sizes.
        drift: relative difference from the outputs before the pass; None where not measured.
        exact: the pass promises that there is none.
        seconds: time in the pass.
        changed: the pass changed something.
        rewrites: how many rewrites it made.
        skipped: how many rewrites it could have made and did not.
    """

    label: str
    nodes: int
    parameters: int
    flops: int
    bytes: int
    drift: float | None
    seconds: float
    exact: bool = False
    changed: bool = True
    rewrites: int = 0
    skipped: int = 0


@dataclass(slots=True)
class Report:
    """What `compile` did.

    Attributes:
        backend: the backend's name.
        passes: a row for the captured Program, then one a pass.
        capture_seconds: time to capture.
        emit_seconds: time to lower.
        verify_seconds: time in the verifier, the comparison with the model included.
        artifact_nodes: operators in the lowered graph.
        artifact_bytes: size of the lowered graph when saved.
        artifact_drift: relative difference of the artifact's outputs from the model's; None where not compared.
        notes: what the user should know.
        warnings: what makes the artifact unfit for use as it is.
        records: everything known of each pass, skip reasons included.
    """

    backend: str
    passes: list[PassRow] = field(default_factory=list)
    capture_seconds: float = 0.0
    emit_seconds: float = 0.0
    verify_seconds: float = 0.0
    artifact_nodes: int = 0
    artifact_bytes: int = 0
    artifact_drift: float | None = None
    notes: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    records: list[PassRecord] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [_HEADINGS, *(_cells(row) for row in self.passes)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(len(line) for line in lines))
        lines.append(
            f"{self.backend}: {self.artifact_nodes} operators, {self.artifact_bytes / 1e6:.1f} MB,"
            f" drift from the model {_drift(self.artifact_drift)};"
            f" captured in {self.capture_seconds:.1f} s, lowered in {self.emit_seconds:.1f} s,"
            f" verified in {self.verify_seconds:.1f} s"
        )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "backend": self.backend,
            "passes": [
                {name: getattr(row, name) for name in PassRow.__dataclass_fields__ if name != "label"}
                | {"pass": row.label}
                for row in self.passes
            ],
            "capture_seconds": self.capture_seconds,
            "emit_seconds": self.emit_seconds,
            "verify_seconds": self.verify_seconds,
            "artifact": {
                "nodes": self.artifact_nodes,
                "bytes": self.artifact_bytes,
                "drift": None if self.artifact_drift is None else _finite(self.artifact_drift),
            },
            "notes": self.notes,
            "warnings": list(self.warnings),
            "skips": [
                {"rule": skip.rule, "node": skip.node, "operator": skip.operator, "reason": skip.reason}
                for record in self.records
                for skip in record.skips
            ],
        }


def row_of(label: str, program: Program, record: PassRecord | None = None, like: PassRow | None = None) -> PassRow:
    """Measure `program` for the report; `like` is the row of a structurally equal Program, which saves the work."""
    if like is not None:
        nodes, parameters, flops, moved = like.nodes, like.parameters, like.flops, like.bytes
    else:
        cost = program.cost().at_samples()
        nodes, parameters = program.node_count(), program.parameter_count()
        flops, moved = _least(cost.flops), _least(cost.bytes_read) + _least(cost.bytes_written)
    if record is None:
        return PassRow(label, nodes, parameters, flops, moved, None, 0.0)
    return PassRow(
        label,
        nodes,
        parameters,
        flops,
        moved,
        record.drift,
        record.seconds,
        record.exact,
        record.changed,
        record.rewrites,
        len(record.skips),
    )


def _least(value: Any) -> int:
    """Return a figure as a number, sizes that depend on data (what `nonzero` returns) taken as 0."""
    return value if isinstance(value, int) else int(value.xreplace(dict.fromkeys(value.free_symbols, sympy.Integer(0))))


def _cells(row: PassRow) -> Sequence[str]:
    remarks = [] if row.changed else ["no change"]
    remarks += [f"{row.skipped} skipped"] if row.skipped else []
    return (
        row.label,
        f"{row.nodes:,}",
        f"{row.parameters:,}",
        f"{row.flops / 1e6:,.1f}",
        f"{row.bytes / 1e6:,.1f}",
        "" if row.label == "capture" else "exact" if row.exact and row.drift is None else _drift(row.drift),
        f"{row.seconds:.2f}",
        ", ".join(remarks),
    )


def _drift(value: float | None) -> str:
    return "not measured" if value is None else "0" if value == 0.0 else f"{value:.1e}"


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
