"""`burnish check`: what a target will not take of a graph, found without the target and before any build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_lines, print_table
from burnish.tools.verb import JsonFlag

if TYPE_CHECKING:
    from burnish.backends.readiness import Range, Target
    from burnish.compiler.backend import Finding

__all__ = ["check"]


def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", show_default=False, help="An .onnx, of any origin, a .burnish, or a .trtbundle."
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            show_default=False,
            help="tensorrt-11, tensorrt-10.12 and later releases, onnxruntime, openvino, or opset-N.",
        ),
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RANGE",
            show_default=False,
            help="Sizes of a dynamic dimension on TensorRT, 'B=1:8:32': least, usual, most; repeat it for more."
            " By default those of the example inputs of a .burnish, and those in a .trtbundle.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what a target does not take of a graph, node by node, with what would mend it; exit status 0 for nothing.

    A .burnish is lowered to ONNX for the target, as it is; a .trtbundle has its graph. No pass runs, nothing is built.

    [dim]burnish check resnet.onnx --target tensorrt-11 --profile B=1:8:32[/]
    """
    from burnish.backends.readiness import Range, Target

    chosen = Target.parse(target)
    found = _findings(file, chosen, Range.parse(profile or []))
    if as_json:
        print_json({"file": str(file), "target": target, "findings": [_as_data(each) for each in found]})
    elif not found:
        print_lines(f"{file}: nothing that {target} refuses is known")
    else:
        rows = [(each.rule, each.node, each.operator, each.reason, each.fix, each.module) for each in found]
        print_table(("rule", "node", "operator", "reason", "mended by", "module"), rows)
    if found:
        raise typer.Exit(1)


def _findings(file: Path, target: Target, ranges: dict[str, Range]) -> list[Finding]:
    from burnish.backends.readiness import graph_of_file, sample_ranges
    from burnish.compiler.errors import InputError
    from burnish.compiler.program import Program
    from burnish.compiler.progress import working

    if not file.is_file():
        raise InputError(f"{file}: {'a folder, not a file' if file.is_dir() else 'no such file'}")
    if file.suffix == ".onnx":
        return target.findings(graph_of_file(str(file)), ranges)
    if file.suffix == ".trtbundle":
        return _bundle_findings(file, target, ranges)
    if file.suffix != ".burnish":
        raise InputError(f"{file}: the ending must be .onnx, .burnish or .trtbundle")
    program = Program.load(file)
    if len(program.graphs) > 1:
        raise InputError(
            f"{file}: a program of {len(program.graphs)} stages: `burnish compile {file} -p '' -b"
            " 'onnx{dialect=...}' -o FOLDER` writes a file for each, to be checked one by one"
        )
    with working(f"lowering for {target.name}"):
        graph, missing = target.lowered(program, str(file))
    if graph is None:
        return missing
    if target.table is not None:
        ranges = sample_ranges(program, graph) | ranges
    return target.findings(graph, ranges)


def _bundle_findings(file: Path, target: Target, ranges: dict[str, Range]) -> list[Finding]:
    from burnish.backends.readiness import Graph
    from burnish.backends.tensorrt.bundle import Bundle

    bundle = Bundle.load(file)
    graph = Graph.of(bundle.model.graph, bundle.model.weights, str(file))
    return target.findings(graph, dict(bundle.ranges) | ranges if target.table is not None else ranges)


def _as_data(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "node": finding.node,
        "operator": finding.operator,
        "reason": finding.reason,
        "fix": finding.fix,
        "module": finding.module,
    }
