"""Rules: Matrix products with a constant become linear layers; what scales or shifts a layer folds into it."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
