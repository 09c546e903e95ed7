"""canonicalize: drop what changes nothing, and give equivalent operators one form.

The rules live beside this file by subject: no_ops, casts, guards, views, forms, layers, quantized.
docs/passes/canonicalize.md lists them. Every rule keeps the numbers bit by bit. Cases that a rule does not handle stand
in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from burnish.compiler.context import Context
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical import casts, forms, guards, layers, no_ops, quantized, views

__all__ = ["Canonicalize"]

# What drops comes before what rewrites, so that nothing is rewritten first and dropped afterwards.
_RULES = (*no_ops.RULES, *guards.RULES, *casts.RULES, *views.RULES, *forms.RULES, *layers.RULES, *quantized.RULES)


@dataclass(frozen=True, kw_only=True)
class Canonicalize(Pass):
    """Bring every operator into the form that the other passes look for; see docs/passes/canonicalize.md."""

    name: ClassVar[str] = "canonicalize"
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Exact()
    idempotent: ClassVar[bool] = True

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the class."""
        rewriter.sweep(_RULES)
