"""Rules: A residual sum, or a sum of embeddings, and the norm that reads it become one operator."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
