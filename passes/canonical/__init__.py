"""Bring a Program into one form without changing what it computes: canonicalize, cse, dce, select-outputs."""

from burnish.passes.canonical.canonicalize import Canonicalize
from burnish.passes.canonical.cse import CommonSubexpressions
from burnish.passes.canonical.dce import DeadCode
from burnish.passes.canonical.select_outputs import SelectOutputs

__all__ = ["Canonicalize", "CommonSubexpressions", "DeadCode", "SelectOutputs"]
