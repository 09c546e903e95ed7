"""Training that wins accuracy back."""

from burnish.passes.recovery.recover import Recover

__all__ = ["Recover"]
