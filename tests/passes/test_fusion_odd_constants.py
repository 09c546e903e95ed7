"""Linear layers whose weight is a vector or whose bias broadcasts, and sums that are scaled by a size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, relu

import burnish


class _Constants(nn.Module):
    def __init__(self, function: Callable[[_Constants, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.wide, self.narrow = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8, 16))
        self.square, self.other = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
        self.vector, self.one = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


_FUNCTIONS: dict[str, Callable[[_Constants, Tensor], Tensor]] = {
    "concatenated": lambda m, x: torch.cat([linear(x, m.square, m.one), linear(x, m.other, m.one)], -1),
    "in a row": lambda m, x: linear(linear(x, m.wide, m.one), m.narrow, m.vector),
    "parallel": lambda m, x: linear(x, m.square, m.one) + linear(x, m.other, m.vector),
    "scaled": lambda m, x: linear(x, m.square, m.one) * m.vector + m.vector,
    "regrouped": lambda m, x: linear(x.reshape(-1, 8), m.square, m.one[None]).reshape(-1, 4, 8),
    "joined with a norm": lambda m, x: layer_norm(linear(x, m.square, m.one) + x, (8,)),
    "vector": lambda m, x: relu(linear(x, m.vector)),
    "vector, scaled behind": lambda m, x: linear(x, m.vector) * 2 + 1,
    "vector, scaled before": lambda m, x: linear(x * 2, m.vector),
    "vector, in a row": lambda m, x: linear(linear(x, m.square), m.vector),
    "vector, parallel": lambda m, x: linear(x, m.vector) + linear(x, m.square[0]),
    "vector, turned": lambda m, x: linear(x[None], m.vector).permute(1, 0, 2),
    "scaled by a size": lambda m, x: torch.add(linear(x, m.square), m.vector, alpha=x.shape[0]),
}


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("name", _FUNCTIONS)
def test_linear_layers_with_other_constants(name: str, dialect: str) -> None:
    torch.manual_seed(0)
    model = _Constants(_FUNCTIONS[name]).eval()
    inputs, backend = (torch.randn(3, 4, 8),), f"onnx{{dialect={dialect}}}"
    compiled = burnish.compile(model, inputs=inputs, backend=backend, progress=False)
    for batch in (1, 0, 5):
        x = torch.randn(batch, 4, 8)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_angles_that_are_the_same_at_all_positions() -> None:
    class Rotated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.view(*x.shape[:2], 2, 8).transpose(1, 2)
            a, b = heads.chunk(2, -1)
            angles = torch.arange(8.0) % 4
            return (heads * angles.cos() + torch.cat([-b, a], -1) * angles.sin()).transpose(1, 2).flatten(2)

    compiled = burnish.compile(Rotated(), inputs=(torch.randn(3, 5, 16),), progress=False)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(compiled(x), Rotated()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keepdim", [True, False])
def test_means_of_double_precision(keepdim: bool) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=keepdim)

    compiled = burnish.compile(Mean(), inputs=(torch.randn(3, 4, 5, 5, dtype=torch.float64),), progress=False)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), Mean()(x), rtol=1e-12, atol=1e-12)
