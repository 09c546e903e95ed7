"""Structured pruning: what has to be removed together, which of it, and the smaller Program."""

from burnish.passes.pruning.prune import Prune

__all__ = ["Prune"]
