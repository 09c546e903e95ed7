"""Bring a Program into one form without changing what it computes.

canonicalize, cse, dce, fold-batch-norm, fold-constants, select-outputs.
"""

from burnish.passes.canonical.canonicalize import Canonicalize
from burnish.passes.canonical.cse import CommonSubexpressions
from burnish.passes.canonical.dce import DeadCode
from burnish.passes.canonical.fold_batch_norm import FoldBatchNorm
from burnish.passes.canonical.fold_constants import FoldConstants
from burnish.passes.canonical.select_outputs import SelectOutputs

__all__ = ["Canonicalize", "CommonSubexpressions", "DeadCode", "FoldBatchNorm", "FoldConstants", "SelectOutputs"]
