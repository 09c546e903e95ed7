"""What the rules of canonicalize ask of types, without ever adding a guard on a symbolic size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["is_number", "repeated", "same_shape", "same_type", "shape_of", "tensor_of"]


def tensor_of(value: Any) -> torch.Tensor | None:
    """Return the fake tensor that is the type of the node `value`; None when it is no node or no tensor."""
    found = value.meta.get("val") if isinstance(value, fx.Node) else None
    return found if isinstance(found, torch.Tensor) else None


def shape_of(value: Any) -> tuple[int | torch.SymInt, ...] | None:
    """Return the shape of the node `value`; None when it is no tensor."""
    found = value.meta.get("val") if isinstance(value, fx.Node) else None
    return tuple(found.shape) if isinstance(found, torch.Tensor) else None


def same_shape(a: Sequence[int | torch.SymInt] | None, b: Sequence[int | torch.SymInt] | None) -> bool:
    """Tell whether two shapes are equal for all values of their symbols."""
    return a is not None and b is not None and len(a) == len(b) and all(map(_same_size, a, b))


def same_type(a: Any, b: Any) -> bool:
    """Tell whether two nodes are tensors of one dtype, device, layout and shape."""
    left, right = tensor_of(a), tensor_of(b)
    if left is None or right is None:
        return False
    return (
        left.dtype == right.dtype
        and left.device == right.device
        and left.layout == right.layout
        and same_shape(left.shape, right.shape)
    )


def is_number(value: Any, wanted: int) -> bool:
    """Tell whether `value` is the number `wanted`, as a Python int or float (no bool, no tensor; -0.0 is not 0)."""
    return type(value) in (int, float) and value == wanted and not (value == 0 and str(value).startswith("-"))


def _same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    left = a.node.expr if isinstance(a, torch.SymInt) else a
    right = b.node.expr if isinstance(b, torch.SymInt) else b
    return bool(left == right)


def repeated(value: Any, count: int) -> list[Any]:
    """Return `value` as a list of `count`: ATen takes one number, or a list of one, for all dimensions."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values
