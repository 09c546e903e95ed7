"""`burnish diff`: what differs between two Programs, by stable name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.text import Text

from burnish.tools.console import print_json, print_lines
from burnish.tools.verb import JsonFlag, ProgramArgument

if TYPE_CHECKING:
    from burnish.tools.diff import Change

__all__ = ["diff"]

_MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def diff(first: ProgramArgument, second: ProgramArgument, as_json: JsonFlag = False) -> None:
    """Compare two programs by meaning; exit status 0 when they are equal, 1 when they differ.

    A text holds no weights: with one on either side, constants are compared by type alone.

    [dim]burnish diff resnet.burnish folded.burnish[/]
    """
    from burnish.compiler.errors import OptionError
    from burnish.tools.diff import diff_programs
    from burnish.tools.model_files import STDIN, holds_weights, read_program

    if first == second == STDIN:
        raise OptionError("standard input holds one program: give a file for the other")
    values = holds_weights(first) and holds_weights(second)
    found = diff_programs(read_program(first), read_program(second), values=values)
    if as_json:
        print_json(found.to_json())
    else:
        for change in found.changes:
            _print_change(change)
    if found:
        raise typer.Exit(1)


def _print_change(change: Change) -> None:
    mark, style = _MARKS[change.kind]
    where = f"{change.graph}: " if change.graph not in ("", "main") and change.what != "graph" else ""
    # The line of an added or removed node starts with its name.
    head = "" if change.what == "node" and change.kind != "changed" else f" {change.name}".rstrip()
    text = Text.assemble((f"{mark} {where}{change.what}{head}", style))
    if change.kind == "changed":
        for line in change.detail:
            text.append(f"\n    {line}")
    else:
        text.append(f"{':' if head else ''} {' '.join(change.detail)}")
    print_lines(text)
