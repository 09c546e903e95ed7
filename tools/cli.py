"""The `burnish` command: one verb a file, in the `*_command.py` beside this one.

Nothing here imports PyTorch: `burnish --help` starts at once, and a verb imports what it needs when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from burnish.tools.bench_command import bench, profile
from burnish.tools.build_trt_command import build_trt
from burnish.tools.check_command import check
from burnish.tools.compile_command import capture, compile_model
from burnish.tools.diff_command import diff
from burnish.tools.doctor_command import doctor
from burnish.tools.explain_command import explain
from burnish.tools.opt_command import opt
from burnish.tools.passes_command import passes
from burnish.tools.repro_command import repro
from burnish.tools.run_command import run
from burnish.tools.run_stages_command import run_stages
from burnish.tools.verb import verb

__all__ = ["app", "main"]

app = typer.Typer(
    name="burnish",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"burnish {version('burnish')}")
    except PackageNotFoundError:
        typer.echo("burnish, from a checkout that is not installed")
    raise typer.Exit


@app.callback()
def _burnish(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """An optimizing graph compiler for PyTorch models.

    [dim]burnish compile mymodels:resnet --input 'f32[2,3,224,224]' -o resnet.onnx[/]

    Exit status: 0, 1 (a check, a pass or the compiler failed), 2 (unusable options or files).
    """


_VERBS: dict[str, Callable[..., None]] = {
    "compile": compile_model,
    "capture": capture,
    "opt": opt,
    "explain": explain,
    "passes": passes,
    "check": check,
    "doctor": doctor,
    "build-trt": build_trt,
    "diff": diff,
    "run": run,
    "run-stages": run_stages,
    "bench": bench,
    "profile": profile,
    "repro": repro,
}
for _name, _function in _VERBS.items():
    app.command(_name)(verb(_function))


def main() -> None:
    """Run the command line."""
    app()
