"""Attention that ONNX's operators take in another form than PyTorch, at sizes that no sample had."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.functional import scaled_dot_product_attention

import burnish

_BACKENDS = ("onnx", "onnx{dialect=standard}", "onnx{dialect=standard,opset=23}")
_TOKENS = {0: Dim.AUTO, 1: Dim.AUTO}


class _Attention(nn.Module):
    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.qkv, self.scale = nn.Linear(16, 48), scale

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (each.unflatten(-1, (4, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale).transpose(1, 2).flatten(2)


class _Grouped(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_mask_of_whole_queries(backend: str) -> None:
    torch.manual_seed(0)
    model, mask = _Attention().eval(), torch.rand(5, 1, 9, 1) < 0.5
    sample = (torch.randn(3, 7, 16), torch.rand(3, 1, 7, 1) < 0.5)
    shapes = (_TOKENS, {0: Dim.AUTO, 2: Dim.AUTO})
    compiled = burnish.compile(model, inputs=sample, backend=backend, dynamic_shapes=shapes, progress=False)
    x = torch.randn(5, 9, 16)
    torch.testing.assert_close(compiled(x, mask), model(x, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_scale_that_is_not_positive(backend: str, scale: float) -> None:
    torch.manual_seed(0)
    model, x = _Attention(scale=scale).eval(), torch.randn(5, 9, 16)
    inputs = (torch.randn(3, 7, 16),)
    compiled = burnish.compile(model, inputs=inputs, backend=backend, dynamic_shapes=(_TOKENS,), progress=False)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", _BACKENDS)
def test_grouped_heads_without_a_batch(backend: str) -> None:
    torch.manual_seed(0)
    sample, others = ([torch.randn(h, s, 16) for h in (8, 2, 2)] for s in (5, 9))
    shapes = ({1: Dim.AUTO},) * 3
    compiled = burnish.compile(_Grouped(), inputs=tuple(sample), backend=backend, dynamic_shapes=shapes, progress=False)
    torch.testing.assert_close(compiled(*others), _Grouped()(*others), rtol=1e-4, atol=1e-5)
