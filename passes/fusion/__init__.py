"""Operator fusion: patterns of ATen operators become one operator that backends have kernels for."""

from burnish.passes.fusion.fuse import Fuse

__all__ = ["Fuse"]
