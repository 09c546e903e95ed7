"""What is said when a pass fails: the pass, the place in the text, the source line, and a reproducer to replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.compiler import reproducer
from burnish.compiler.context import Context
from burnish.compiler.errors import InputError, OptionError, PassError, VerificationError
from burnish.compiler.graphs import name_of
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of

if TYPE_CHECKING:
    from burnish.compiler.pipeline import Pipeline

__all__ = ["explain_failure"]

_AROUND = 2


def explain_failure(
    error: Exception,
    program: Program,
    shown: Program,
    failed: Pass,
    label: str,
    position: int,
    rest: Pipeline,
    context: Context,
    verify: int,
) -> PassError:
    """Return the PassError for `error`, raised while `failed` ran on `program`, and write the reproducer bundle.

    Args:
        error: what was raised.
        program: the Program before the pass.
        shown: the Program that the message quotes: the one after the pass, where there is one.
        failed: the pass.
        label: how it is addressed in its pipeline.
        position: its 0-based position.
        rest: the failed pass and all after it.
        context: its seed goes into the bundle.
        verify: the level of verification that found it.
    """
    lines = [f"pass {label!r} (number {position + 1}) failed: {type(error).__name__}: {error}"]
    if program.history:
        lines.append(f"  passes before it: {', '.join(program.history)}")
    name = error.node if isinstance(error, VerificationError) else None
    if name is not None:
        lines += _excerpt(shown, name)
    bundle: str | None = None
    if isinstance(error, (OptionError, InputError)):
        # The message says what to change: there is nothing to look into.
        return PassError("\n".join(lines), pass_name=failed.name, position=position, bundle=None)
    try:
        bundle = str(reproducer.write_bundle(program, rest, context.seed, verify, error))
        lines.append(f"  replay with: burnish repro {bundle}")
    except Exception as problem:  # the failure itself must come out, whatever happens to the bundle
        lines.append(f"  no reproducer could be written: {problem}")
    return PassError("\n".join(lines), pass_name=failed.name, position=position, bundle=bundle)


def _excerpt(program: Program, name: str) -> list[str]:
    """Return the lines of text around the node called `name`, it underlined, and its source line."""
    shown: list[str] = []
    text = program.print().splitlines()
    at = next((index for index, line in enumerate(text) if line.lstrip().startswith(f"%{name} =")), None)
    if at is not None:
        for index in range(max(0, at - _AROUND), min(len(text), at + _AROUND + 1)):
            shown.append(f"    {text[index]}")
            if index == at:
                start = len(text[index]) - len(text[index].lstrip())
                shown.append("    " + " " * start + "^" * (len(text[index]) - start))
    for _, graph in program.all_graphs():
        for node in graph.nodes:
            provenance = provenance_of(node)
            if node.op != "output" and name_of(node) == name and provenance is not None:
                shown += [f"  from {origin}: {origin.code}".rstrip(": ") for origin in provenance.origins]
    return shown
