"""Rules: Low-rank adapters, and linear layers in a row, merge into one."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
