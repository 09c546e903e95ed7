"""`burnish repro`: replay the bundle that a failed pass left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from burnish.tools.console import print_lines

__all__ = ["repro"]


def repro(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", show_default=False, help="The folder that the error message named.")
    ],
) -> None:
    """Replay a failure; exit status 1 when it still fails, 0 when it no longer does.

    [dim]burnish repro /tmp/burnish-repro-x1y2z3[/]
    """
    from burnish.compiler.context import Context
    from burnish.compiler.errors import InputError, PassError
    from burnish.compiler.pipeline import Pipeline, run_pipeline
    from burnish.compiler.reproducer import read_bundle

    if not bundle.is_dir():
        raise InputError(f"{bundle}: no such folder")
    recorded = read_bundle(bundle)
    print_lines(f"{bundle}: {recorded.pipeline}, seed {recorded.seed}, verification level {recorded.verify}")
    try:
        program = recorded.program
        # The calibration data are not in the bundle: the sample inputs stand in for them.
        context = Context(seed=recorded.seed, calibration=[program.samples] if program.samples else None)
        run_pipeline(Pipeline.parse(recorded.pipeline), program, context, verify=recorded.verify)
    except PassError as error:
        # The replay wrote a bundle of its own, the same one again.
        if error.bundle is not None:
            shutil.rmtree(error.bundle, ignore_errors=True)
            error.args = (str(error).replace(error.bundle, str(bundle)),)
        cause = error.__cause__
        same = recorded.error == f"{type(cause).__name__}: {cause}"
        print_lines("it still fails" if same else f"it still fails, otherwise than recorded ({recorded.error})")
        raise
    print_lines(f"it does not fail any more (recorded: {recorded.error})")
