"""select-outputs: keep some outputs of the model, and only what they need.

Patterns are matched against the names of the outputs (`burnish capture` prints them: `logits`, `states_0`). The
containers keep their kind with what is left in them: a tuple of one stays a tuple, a dict loses the keys that were
dropped, and a dropped field of a registered class is None (a `ModelOutput` then leaves it out). A container of which
nothing is left goes with its entry. A bare output stays bare.

Not handled: outputs of a graph that is no output of the Program (an intermediate value) cannot be selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.structure import Container, Literal, Structure, leaf_names
from burnish.passes.canonical.dce import erase_dead

__all__ = ["SelectOutputs"]

_SHRINKING = ("tuple", "list", "dict")


@dataclass(frozen=True, kw_only=True)
class SelectOutputs(Pass):
    """Keep the outputs whose names match, and erase what only the others needed.

    Attributes:
        names: patterns as in a shell, `logits`, `states_*`; an output is kept when it matches one of them.
    """

    name: ClassVar[str] = "select-outputs"
    numerics: ClassVar[Numerics] = Exact()
    idempotent: ClassVar[bool] = True
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise OptionError("pass 'select-outputs': option 'names' must have a pattern: names=[logits]")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the class.

        Raises:
            OptionError: a pattern matches no output; the message names those there are.
        """
        known = program.signature.output_names
        for pattern in self.names:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise OptionError(
                    f"pass 'select-outputs': no output matches {pattern!r}: there are {', '.join(map(repr, known))}"
                )
        kept = {name for name in known if any(fnmatchcase(name, pattern) for pattern in self.names)}
        if len(kept) == len(known):
            return
        outputs = _shrink(program.signature.outputs, kept)
        assert outputs is not None
        with rewriter.rewrite("select"):
            rewriter.set_output_structure(outputs)
            erase_dead(program, rewriter)


def _shrink(structure: Structure, kept: set[str]) -> Structure | None:
    """Return what is left of `structure`; None when it had outputs and none of them is kept."""
    names = set(leaf_names(structure))
    if names and not names & kept:
        return None
    if not isinstance(structure, Container):
        return structure
    children = [_shrink(child, kept) for child in structure.children]
    if structure.kind not in _SHRINKING:
        # Only its own code knows which parts the class can do without: the number of parts stays.
        filled = tuple(Literal(None) if child is None else child for child in children)
        return Container(structure.kind, structure.keys, filled, structure.context)
    left = [index for index, child in enumerate(children) if child is not None]
    keys = tuple(structure.keys[index] for index in left) if structure.keys else ()
    return Container(structure.kind, keys, tuple(child for child in children if child is not None), structure.context)
