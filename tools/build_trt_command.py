"""`burnish build-trt`: build the engine of a bundle on this machine, run and verify it, and say what came out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import finite, print_json, print_lines, say
from burnish.tools.verb import JsonFlag

if TYPE_CHECKING:
    from burnish.backends.tensorrt.construction import Result

__all__ = ["build_trt"]


def build_trt(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", show_default=False, help="A .trtbundle: a file, or a folder of stages.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the engine here; by default beside the bundle, .engine."
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Keep how fast kernels were: the next build is short."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long to time it.")] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """Build an engine on this machine's GPU, run it on the bundle's samples, verify its outputs, and save it.

    Beside the engine stands FILE.json: versions, GPU, seconds of the build, latency, error, layers. Where an output is
    further from the expected one than the contract allows, no engine is written, and the exit status is 1.

    [dim]burnish build-trt resnet.trtbundle --out resnet.engine[/]
    """
    from burnish.backends.tensorrt.construction import construct
    from burnish.compiler.errors import VerificationError
    from burnish.compiler.progress import working

    engine = output if output is not None else bundle.with_suffix(".engine")
    report = engine.with_name(f"{engine.name}.json")
    _check_paths(bundle, engine, report)
    with working("building"):
        result = construct(bundle, timing_cache, seconds)
    if result.verified is not False:
        result.artifact.save(engine)
    _write(report, result)
    if as_json:
        print_json(result.data)
    else:
        print_lines("\n".join(_lines(result)))
    if result.verified is False:
        raise VerificationError(
            f"{bundle}: the engine's outputs are {result.data['error']:.3g} from the expected ones, where"
            f" {result.data['tolerance']:g} is allowed: no engine is written; {report} has the details"
        )
    say("saved", f"{engine} and {report}", "bold green")


def _check_paths(bundle: Path, engine: Path, report: Path) -> None:
    from burnish.backends.stages.artifact import check_folder
    from burnish.compiler.errors import InputError, OptionError
    from burnish.tools.model_files import check_writable

    if not bundle.exists():
        raise InputError(f"{bundle}: no such file")
    if engine == bundle:
        raise OptionError(f"{engine}: the engine would take the place of the bundle")
    if bundle.is_dir():
        check_folder(engine)
    else:
        check_writable(str(engine))
        if engine.suffix != ".engine":
            raise OptionError(f"{engine}: an engine ends in .engine")
    check_writable(str(report))


def _write(report: Path, result: Result) -> None:
    import json

    from burnish.compiler.atomic import atomic_path

    with atomic_path(report) as temporary:
        temporary.write_text(json.dumps(finite(result.data), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _lines(result: Result) -> Iterator[str]:
    data: dict[str, Any] = result.data
    yield f"TensorRT {data['versions']['tensorrt']} on {', '.join(data['gpus'])}"
    yield f"built in {data['build_seconds']:.1f} s, {data['bytes']:,} bytes"
    if data["latency"] is not None:
        yield f"latency: median {data['latency']['median'] * 1e3:.3f} ms, p90 {data['latency']['p90'] * 1e3:.3f} ms"
    allowed = (
        f"error {data['error']:.3g}, {data['tolerance']:g} allowed" if data["error"] is not None else "not verified"
    )
    yield allowed if data["error"] is not None else f"{allowed}: the bundle has no samples, or draws random numbers"
    yield from (f"note: {note}" for note in result.artifact.notes())
