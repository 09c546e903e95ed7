"""Rules: A convolution or linear layer takes over the residual sum and the activation behind it."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
