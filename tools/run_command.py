"""`burnish run`: run something saved once, and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_table
from burnish.tools.verb import InputOption, JsonFlag, SeedOption

if TYPE_CHECKING:
    import torch

__all__ = ["run"]

_FIGURES = ("min", "max", "mean", "std")


def run(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", show_default=False, help="An artifact (.onnx, .pt, ...) or a .burnish, which runs in eager."
        ),
    ],
    npz: Annotated[
        Path | None, typer.Option("--inputs", metavar="FILE.npz", help="The inputs by name; by default seeded random.")
    ] = None,
    inputs: InputOption = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Write the outputs here, by name.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Run an artifact or a saved program, and print shape, type and statistics of every output.

    [dim]burnish run resnet.onnx --input 'f32[8,3,224,224]' --output out.npz[/]
    """
    from burnish.compiler import structure
    from burnish.compiler.errors import OptionError
    from burnish.tools.example_inputs import write_npz
    from burnish.tools.model_files import check_writable
    from burnish.tools.runnable import Runnable

    check_writable(output)
    if npz is not None and inputs:
        raise OptionError("--inputs and --input exclude each other")
    runnable = Runnable.load(file)
    args, kwargs = runnable.arguments(inputs or [], seed, npz)
    outputs = structure.flatten(runnable.binding.outputs, runnable.call(*args, **kwargs), "outputs")
    if output is not None:
        write_npz(Path(output), outputs)
    described = {name: _describe(value) for name, value in outputs.items()}
    if as_json:
        print_json({"file": str(file), "outputs": described})
        return
    rows = [
        (name, str(each["shape"]), each["dtype"], *(_figure(each[key]) for key in _FIGURES), each["remark"])
        for name, each in described.items()
    ]
    print_table(("output", "shape", "dtype", *_FIGURES, ""), rows, right=_FIGURES)


def _describe(value: Any) -> dict[str, Any]:
    import torch

    if not isinstance(value, torch.Tensor):
        figures = dict.fromkeys(_FIGURES, value) | {"std": 0.0}
        return {"shape": [], "dtype": type(value).__name__, **figures, "remark": ""}
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        **_statistics(value),
        "remark": _remark(value),
    }


def _statistics(value: torch.Tensor) -> dict[str, float | None]:
    """Return the statistics over the finite elements; None where there are none."""
    import torch

    wide = torch.view_as_real(value) if value.is_complex() else value
    wide = wide.detach().double()
    wide = wide[torch.isfinite(wide)]
    if not wide.numel():
        return dict.fromkeys(_FIGURES)
    figures = (wide.min(), wide.max(), wide.mean(), wide.std(correction=0))
    return dict(zip(_FIGURES, map(float, figures), strict=True))


def _remark(value: torch.Tensor) -> str:
    import torch

    nans, infinite = int(torch.isnan(value).sum()), int(torch.isinf(value).sum())
    counted = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count]
    return ", ".join(counted)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, (int, float)) else str(value)
