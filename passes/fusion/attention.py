"""Rules: Attention that a model spells out becomes scaled_dot_product_attention."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
