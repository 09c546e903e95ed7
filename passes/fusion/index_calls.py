"""One operator as the analysis of index values sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.sizes import static_size
from burnish.passes.canonical.types import shape_of, tensor_of
from burnish.passes.fusion.index_values import Linear, Sizes, Value

__all__ = ["Call", "axis"]


@dataclass(frozen=True, slots=True)
class Call:
    """One operator: its arguments by schema name, the values of those that are nodes, and its result's sizes."""

    node: fx.Node
    given: dict[str, Any]
    values: dict[fx.Node, Value | None]
    shape: Sizes

    @property
    def target(self) -> Any:
        """The operator."""
        return self.node.target

    @property
    def dtype(self) -> torch.dtype:
        """The type of the result's elements."""
        result = tensor_of(self.node)
        assert result is not None
        return result.dtype

    def value(self, name: str) -> Value | None:
        """Return the value of a tensor argument."""
        return self.values.get(self.given[name])

    def sizes(self, name: str) -> Sizes:
        """Return the sizes of a tensor argument."""
        return shape_of(self.given[name]) or ()

    def number(self, name: str) -> int | None:
        """Return an integer argument; None when it is none, or no number."""
        found = self.given[name]
        found = found.meta.get("val") if isinstance(found, fx.Node) else found
        return static_size(found) if isinstance(found, (int, torch.SymInt)) else None

    def run(self, tensors: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
        """Return the operator's result for these tensor arguments."""
        args, kwargs = fx.node.map_arg((self.node.args, dict(self.node.kwargs)), tensors.__getitem__)
        result: torch.Tensor = self.target(*args, **kwargs)
        return result


def axis(dim: int, rank: int, start: int = 0, step: int = 1) -> Linear:
    """Return the form start + step * i_dim."""
    return Linear(start, tuple(step if each == dim else 0 for each in range(rank)))
