"""fuse: patterns of ATen operators become one operator that backends have kernels for.

The rules live beside this file by subject; docs/passes/fuse.md lists them. They run in phases, because some look for
what others make: spelled-out operators first, then attention, then what joins neighbours. Cases that a rule does not
handle stand in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from burnish.compiler.context import Context
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Numerics, Reassociates
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.fusion import (
    activations,
    adapters,
    attention,
    heads,
    layers,
    linear_forms,
    masks,
    norms,
    padding,
    pooling,
    projections,
    rotary,
    scales,
    skip_norms,
)

__all__ = ["Fuse"]

_PHASES = (
    (*activations.RULES, *norms.RULES, *pooling.RULES, *padding.RULES, *linear_forms.RULES),
    (*scales.RULES, *adapters.RULES),  # not before: half an activation or norm is a scale too
    (*attention.RULES, *masks.RULES),
    (*rotary.RULES, *heads.RULES),
    projections.RULES,
    skip_norms.RULES,
    layers.RULES,
)


@dataclass(frozen=True, kw_only=True)
class Fuse(Pass):
    """Join operators that backends compute faster together; see docs/passes/fuse.md."""

    name: ClassVar[str] = "fuse"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Reassociates(rtol=1e-5)
    idempotent: ClassVar[bool] = True

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the class."""
        for rules in _PHASES:
            rewriter.sweep(rules)
