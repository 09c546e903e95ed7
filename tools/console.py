"""What the command prints: tables, program text and JSON, coloured on a terminal and plain everywhere else.

Rich decides what a terminal is, and honours NO_COLOR. In a pipe nothing is wrapped, cropped or padded.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["finite", "print_json", "print_lines", "print_program", "print_table", "say"]

_WIDE = 100_000
_PROGRAM_STYLES = (
    (r"^#.*$", "dim"),
    (r"^\s*(graph|branch|return|constant|inputs|outputs|parameters|dims)\b", "bold"),
    (r"%[\w.]+", "cyan"),
    (r"@[\w.]+", "magenta"),
    (r"\b[a-z]+\d+\[[^\]]*\]", "green"),
)


def print_json(data: Any) -> None:
    """Print `data` as JSON on standard output; numbers that JSON lacks (inf, nan) become strings."""
    sys.stdout.write(json.dumps(finite(data), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    error: bool = False,
) -> None:
    """Print a table.

    Args:
        headings: names of the columns.
        rows: cells as text.
        right: headings of the columns that are aligned to the right.
        error: print on standard error.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = _console(error)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    _stream(error).writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def print_program(text: str, *, error: bool = False) -> None:
    """Print the text form of a Program."""
    console = _console(error)
    if not console.is_terminal:
        _stream(error).write(text)
        return
    shown = Text(text.rstrip("\n"))
    for pattern, style in _PROGRAM_STYLES:
        shown.highlight_regex(f"(?m){pattern}", style)
    console.print(shown, soft_wrap=True)


def print_lines(text: str | Text, *, error: bool = False) -> None:
    """Print prose or figures; on a terminal the numbers in a plain text are coloured."""
    _console(error).print(text, markup=False, highlight=isinstance(text, str), soft_wrap=True)


def say(label: str, message: str, style: str = "") -> None:
    """Print `label: message` on standard error."""
    print_lines(Text.assemble((f"{label}: ", style), message), error=True)


def _console(error: bool) -> Console:
    console = Console(stderr=error, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def _stream(error: bool) -> Any:
    return sys.stderr if error else sys.stdout


def finite(data: Any) -> Any:
    """Return `data` with strings in place of the numbers that JSON lacks."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
