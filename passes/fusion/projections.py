"""Rules: Linear layers that read the same input merge into one."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
