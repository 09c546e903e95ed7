"""`burnish explain`: which rules could have fired and did not, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.tools.console import print_json, print_lines, print_table
from burnish.tools.verb import CalibrationOption, JsonFlag, PassesOption, ProgramArgument, SeedOption, TargetOption

if TYPE_CHECKING:
    from burnish.compiler.pipeline import PassRecord
    from burnish.compiler.program import Program

__all__ = ["explain"]


def explain(
    file: ProgramArgument,
    passes: PassesOption,
    backend: TargetOption = None,
    calibration: CalibrationOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """List every rule that could have fired and did not, with the reason.

    The passes run without verification.

    [dim]burnish explain resnet.burnish -p fold-batch-norm[/]
    """
    from burnish.compiler.pipeline import run_pipeline
    from burnish.tools.model_files import read_program
    from burnish.tools.pass_context import pass_context

    pipeline, context = pass_context(passes, backend, calibration, seed)
    found: list[dict[str, Any]] = []

    def note(record: PassRecord, before: Program, after: Program) -> None:
        places = _places(before) | _places(after) if record.skips else {}
        for skip in record.skips:
            reason = {"rule": skip.rule, "node": skip.node, "operator": skip.operator, "reason": skip.reason}
            found.append({"pass": record.label, **reason, "from": places.get(skip.node, [])})

    run_pipeline(pipeline, read_program(file), context, verify=0, observer=note)
    if as_json:
        print_json(found)
    elif not found:
        print_lines("no rule was held back")
    else:
        rows = [
            (each["pass"], each["rule"], f"%{each['node']}", each["operator"], each["reason"], "; ".join(each["from"]))
            for each in found
        ]
        print_table(("pass", "rule", "node", "operator", "reason", "from"), rows)


def _places(program: Program) -> dict[str, list[str]]:
    """Return the places in the model that each node came from, by the node's name."""
    from burnish.compiler.graphs import calls, name_of
    from burnish.compiler.provenance import provenance_of

    places: dict[str, list[str]] = {}
    for _, graph in program.all_graphs():
        for node in calls(graph):
            provenance = provenance_of(node)
            origins = provenance.origins if provenance is not None else ()
            places[name_of(node)] = [str(origin) for origin in origins if origin.module or origin.file]
    return places
