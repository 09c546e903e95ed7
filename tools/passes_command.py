"""`burnish passes`: what passes there are, and what one of them does and takes."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_lines, print_table
from burnish.tools.verb import JsonFlag

if TYPE_CHECKING:
    from burnish.compiler.pass_base import Pass

__all__ = ["passes"]


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Describe this pass in full.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List all passes, or describe one: its options, facts and numerics.

    [dim]burnish passes fold-batch-norm[/]
    """
    from burnish.compiler.pipeline import Repeat
    from burnish.compiler.registry import find_pass, pass_names

    if name is not None:
        described = _describe(Repeat if name == Repeat.name else find_pass(name))
        if as_json:
            print_json(described)
        else:
            _print_pass(described)
        return
    kinds: list[type[Pass]] = [Repeat, *map(find_pass, pass_names())]
    found = [_describe(each) for each in sorted(kinds, key=lambda each: each.name)]
    if as_json:
        print_json(found)
    else:
        rows = [(each["name"], each["numerics"], each["doc"].partition("\n")[0]) for each in found]
        print_table(("pass", "numerics", ""), rows)


def _describe(kind: type[Pass]) -> dict[str, Any]:
    from burnish.compiler.numerics import Exact, Reassociates
    from burnish.compiler.pipeline import Repeat

    numerics = kind.numerics
    contract = "as the passes inside" if kind is Repeat else "exact" if isinstance(numerics, Exact) else "lossy"
    return {
        "name": kind.name,
        "doc": inspect.getdoc(kind) or "",
        "options": _options(kind),
        "requires": sorted(map(str, kind.requires)),
        "establishes": sorted(map(str, kind.establishes)),
        "breaks": sorted(map(str, kind.breaks)),
        "numerics": f"reassociates, rtol {numerics.rtol:g}" if isinstance(numerics, Reassociates) else contract,
        "idempotent": kind.idempotent,
    }


def _options(kind: type[Pass]) -> list[dict[str, Any]]:
    from burnish.compiler.pipeline import Repeat

    hints = typing.get_type_hints(kind)
    options = []
    for field in dataclasses.fields(kind):
        if kind is Repeat and field.name == "passes":
            continue  # written in parentheses, not as an option
        factory = field.default_factory
        default = factory() if factory is not dataclasses.MISSING else field.default
        required = default is dataclasses.MISSING
        options.append(
            {
                "name": field.name,
                "type": _type_text(hints[field.name]),
                "required": required,
                "default": None if required else _plain(default),
            }
        )
    return options


def _print_pass(described: dict[str, Any]) -> None:
    print_lines(f"{described['name']}: {described['doc']}")
    print_lines("")
    if described["options"]:
        rows = [
            (each["name"], each["type"], "required" if each["required"] else repr(each["default"]))
            for each in described["options"]
        ]
        print_table(("option", "type", "default"), rows)
    else:
        print_lines("no options")
    print_lines("")
    for key in ("requires", "establishes", "breaks"):
        print_lines(f"{key}: {', '.join(described[key]) or '-'}")
    print_lines(f"numerics: {described['numerics']}")
    print_lines(f"idempotent: {'yes' if described['idempotent'] else 'no'}")


def _type_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
