"""The base of every verb of the command: `--debug`, clean errors, exit status, and the options that verbs share.

Exit status: 0; 1 when a check failed, or a pass or the compiler did; 2 when the command cannot use what it was given
(an option, a pass, a file). An exception that is no BurnishError is a bug, of burnish or of the user's model, and
keeps its traceback.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.compiler.errors import (
    BurnishError,
    FileFormatError,
    InputError,
    OptionError,
    PassError,
    PipelineError,
    TextError,
)
from burnish.tools.console import say

__all__ = [
    "CalibrationOption",
    "InputOption",
    "JsonFlag",
    "ProgramOutputOption",
    "ModelArgument",
    "PassesOption",
    "ProgramArgument",
    "SeedOption",
    "TargetOption",
    "verb",
]

_USAGE = (OptionError, PipelineError, InputError, FileFormatError, TextError)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="package.module:factory (a function or class without arguments that returns a module, or a module and"
        " its example inputs), a .pt2 file, or a .burnish file.",
    ),
]
ProgramArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE", show_default=False, help="A .burnish file, a program as text, or - for text from stdin."
    ),
]
PassesOption = Annotated[
    str, typer.Option("--passes", "-p", metavar="SPEC", show_default=False, help="The pipeline: 'cse,dce'.")
]
CalibrationOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="A .npz with a batch of inputs by name, and perhaps its `target`, for passes that need data; repeat it for"
        " more.",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        metavar="BACKEND",
        show_default=False,
        help="Run the passes for this backend; 'default' in the pipeline stands for its own passes.",
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="TYPE",
        show_default=False,
        help="An input with seeded random values, 'f32[2,3,224,224]' or 'name:i64[2,16]'; repeat it for more.",
    ),
]
ProgramOutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="A .burnish file holds weights and example inputs, any other the text alone; by default stdout.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Everything random derives from it.")]
_DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead.")]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Return `function` as typer takes it: with `--debug`, and a BurnishError as one message and an exit status."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except BrokenPipeError:
            raise
        except (BurnishError, OSError) as error:
            if debug:
                traceback.print_exc()
            message = (
                f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
            )
            say("error", message, "bold red")
            reason = error.__cause__ if isinstance(error, PassError) else error
            raise typer.Exit(2 if isinstance(reason, (*_USAGE, OSError)) else 1) from error

    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_DebugFlag)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), debug])  # type: ignore[attr-defined]
    return run
