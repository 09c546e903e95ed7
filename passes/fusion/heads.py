"""Rules: Attention between head splits and merges becomes multi_head_attention over tokens."""

from __future__ import annotations

from burnish.compiler.rewriter import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = ()
