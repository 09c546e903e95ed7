"""How an operator of the `burnish` namespace is registered: a schema, and its reference decomposition.

The decomposition is the operator's meaning in full: eager runs, types, gradients and every backend without a better
idea use it. Being CompositeImplicitAutograd, it needs no fake implementation and no formula for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NAMESPACE", "decomposition_of", "fused_operator", "is_fused"]

NAMESPACE = "burnish"
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_decompositions: dict[str, Callable[..., Any]] = {}


def fused_operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the operator with `schema`, "name(Tensor x, *, float eps=1e-5) -> Tensor"."""

    def register(decomposition: Callable[..., Any]) -> Callable[..., Any]:
        name = _library.define(schema)
        _library.impl(name, decomposition, "CompositeImplicitAutograd")
        _decompositions[f"{NAMESPACE}::{name}"] = decomposition
        return decomposition

    return register


def decomposition_of(target: Any) -> Callable[..., Any]:
    """Return the reference decomposition of a fused operator."""
    return _decompositions[target._schema.name]


def is_fused(target: Any) -> bool:
    """Tell whether `target` is an operator of the `burnish` namespace."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == NAMESPACE
