"""`burnish compile` and `burnish capture`: from a model to an artifact, or to a Program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_lines, say
from burnish.tools.verb import (
    CalibrationOption,
    InputOption,
    JsonFlag,
    ModelArgument,
    ProgramOutputOption,
    SeedOption,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from burnish.compiler.capture import Inputs
    from burnish.compiler.program import Program

__all__ = ["capture", "compile_model"]

# What the folder of a partitioned model has; imports for its name would cost the command's start.
_MANIFEST = "manifest.json"


def compile_model(
    model: ModelArgument,
    passes: Annotated[
        str | None,
        typer.Option("--passes", "-p", metavar="SPEC", help="The pipeline; by default the backend's own, 'default'."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", "-b", metavar="BACKEND", help="With options as in 'onnx{threads=2}'.")
    ] = "onnx",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Save the artifact here.")
    ] = None,
    inputs: InputOption = None,
    calibration: CalibrationOption = None,
    verify: Annotated[
        int, typer.Option("--verify", min=0, max=4, help="Level of verification; below 2 nothing is compared.")
    ] = 2,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Compile a model and report what every pass did.

    [dim]burnish compile mymodels:resnet --input 'f32[2,3,224,224]' -p canonicalize,fold-batch-norm -o resnet.onnx[/]
    """
    from burnish.compiler.compile import compile_model as compile_it
    from burnish.compiler.quiet import silenced
    from burnish.tools.model_files import check_writable
    from burnish.tools.pass_context import read_calibration

    is_folder = output is not None and (
        (Path(output) / _MANIFEST).is_file() or (not Path(output).suffix and _may_have_stages(model, passes or ""))
    )
    if output is not None and is_folder:
        from burnish.backends.stages.artifact import check_folder

        check_folder(Path(output))
    else:
        check_writable(output)
    _check_backend(backend, None if is_folder else output)
    found, examples = _model_and_inputs(model, inputs, seed)
    data = read_calibration(calibration)
    # The report has the warnings.
    with silenced():
        compiled = compile_it(found, passes, examples, backend=backend, calibration=data, verify=verify, seed=seed)
    if output is not None:
        compiled.save(output)
    if as_json:
        print_json(compiled.report.to_json() | {"file": output})
        return
    print_lines(str(compiled.report))
    if output is not None:
        say("saved", output, "bold green")


def capture(
    model: ModelArgument,
    output: ProgramOutputOption = None,
    inputs: InputOption = None,
    seed: SeedOption = 0,
) -> None:
    """Capture a model into a Program, and save it or print its text.

    [dim]burnish capture mymodels:resnet --input 'f32[2,3,224,224]' -o resnet.burnish[/]
    """
    from burnish.compiler.capture import as_arguments
    from burnish.compiler.capture import capture as capture_it
    from burnish.compiler.program import Program
    from burnish.compiler.progress import working
    from burnish.tools.model_files import check_writable, write_program

    check_writable(output)
    found, examples = _model_and_inputs(model, inputs, seed)
    with working("capture"):
        if not isinstance(found, Program):
            program = capture_it(found, examples)
        else:
            program = found if examples is None else found.with_samples(*as_arguments(examples))
    for note in program.notes:
        say("note", note, "bold")
    write_program(program, output)


def _model_and_inputs(
    model: str, texts: list[str] | None, seed: int
) -> tuple[nn.Module | ExportedProgram | Program, Inputs | None]:
    from torch import nn

    from burnish.compiler.errors import InputError
    from burnish.tools.example_inputs import example_inputs
    from burnish.tools.model_files import read_model

    given = example_inputs(texts or [], seed)
    found, made = read_model(model)
    examples: Any = given if given is not None else made
    if examples is None and isinstance(found, nn.Module):
        raise InputError(
            f"{model} returns a module without example inputs: give --input 'f32[2,3,224,224]' for each input,"
            " or return (module, inputs)"
        )
    return found, examples


def _may_have_stages(model: str, passes: str) -> bool:
    """Tell whether a model may end up in stages, which are saved as a folder."""
    from burnish.compiler.spec import parse_spec

    return model.endswith(".burnish") or any(each.name == "partition" for each in parse_spec(passes))


def _check_backend(text: str, output: str | None) -> None:
    """Find the backend, and check that it writes files like `output`, before any work."""
    from burnish.compiler.backend import suffixes
    from burnish.compiler.errors import BackendError, OptionError
    from burnish.compiler.loading import parse_backend

    try:
        backend, _ = parse_backend(text)
    except BackendError as error:
        raise OptionError(str(error)) from error
    if output is not None and Path(output).suffix not in suffixes(backend):
        known = " or ".join(suffixes(backend))
        raise OptionError(f"{output}: an artifact of the backend {backend.name!r} ends in {known}")
