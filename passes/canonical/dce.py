"""dce: erase what no output and no buffer update needs.

Random operators and assertions whose results nobody uses go as well. In a partitioned Program an output of a stage
that no later stage and no output of the Program needs goes, and so does the input of a stage that it no longer uses.

Not handled: inputs of the whole Program stay, used or not, because they are part of how it is called; a result of an
operator with several results stays as long as another of its results is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.graphs import output_of, placeholders
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.operators import is_mutating
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter

__all__ = ["DeadCode", "erase_dead"]


@dataclass(frozen=True, kw_only=True)
class DeadCode(Pass):
    """Erase operators and constants that neither an output nor a buffer update needs."""

    name: ClassVar[str] = "dce"
    numerics: ClassVar[Numerics] = Exact()
    idempotent: ClassVar[bool] = True

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the class."""
        erase_dead(program, rewriter)


def erase_dead(program: Program, rewriter: Rewriter) -> None:
    """Erase from all graphs what is not needed, in one sweep from the last node to the first."""
    for graph in program.branches.values():
        _sweep(graph, rewriter)
    needed = set(program.signature.output_names)
    inputs = set(program.signature.input_names)
    for graph in reversed(program.graphs.values()):
        outputs: dict[str, fx.Node] = output_of(graph).args[0]  # type: ignore[assignment]
        kept = {name: node for name, node in outputs.items() if name in needed}
        if len(kept) < len(outputs):
            rewriter.set_outputs(graph, kept)
        _sweep(graph, rewriter)
        for node in placeholders(graph):
            if node.users or node.target in inputs:
                needed.add(str(node.target))
            else:
                rewriter.erase(node)


def _sweep(graph: fx.Graph, rewriter: Rewriter) -> None:
    # Users stand behind what they use, so going backwards one look at each node is enough.
    for node in reversed(list(graph.nodes)):
        if node.users or node.op not in ("call_function", "get_attr"):
            continue
        if node.op == "get_attr" or not is_mutating(node.target):
            rewriter.erase(node)
