"""What makes a network smaller: channels and blocks that go with all that belongs to them, and zeros for weights."""

from burnish.passes.pruning.prune import Prune
from burnish.passes.pruning.prune_blocks import PruneBlocks
from burnish.passes.pruning.sparsify import Sparsify

__all__ = ["Prune", "PruneBlocks", "Sparsify"]
