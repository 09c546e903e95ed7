"""The operators of the `burnish` namespace: what the passes fuse to. Importing this registers them with PyTorch.

Each has a schema and a reference decomposition (`registry.fused_operator`), and nothing else: what it means is in its
arguments, and a backend without a kernel for it inlines the decomposition.
"""

from burnish.compiler.fused import activations, attention, layers, norms
from burnish.compiler.fused.registry import NAMESPACE, decomposition_of, is_fused

__all__ = ["NAMESPACE", "activations", "attention", "decomposition_of", "is_fused", "layers", "norms"]
