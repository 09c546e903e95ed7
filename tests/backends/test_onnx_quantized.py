"""Dequantized weights of linear layers in ONNX: by tensor and by channel, for matrices and for more dimensions."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch.nn import functional

import burnish
from burnish.compiler.numerics import worst_drift

_LIMITS = (-128, 127, torch.int8)


class _Dequantized(torch.nn.Module):
    """A linear layer of an int8 weight [4, 6], with a zero point of its own."""

    def __init__(self, by_channel: bool, bias: bool) -> None:
        super().__init__()
        self.by_channel = by_channel
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randint(-128, 128, (4, 6), generator=generator).to(torch.int8))
        self.register_buffer("scales", torch.tensor([0.01, 0.02, 0.5, 3.0]))
        self.register_buffer("zeros", torch.tensor([0, 5, -7, 100]))
        self.bias = torch.nn.Parameter(torch.randn(4, generator=generator)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        library = torch.ops.quantized_decomposed
        if self.by_channel:
            weight = library.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, *_LIMITS)
        else:
            weight = library.dequantize_per_tensor(self.weight, 0.02, 5, *_LIMITS)
        return functional.linear(x, weight, self.bias)


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6)], ids=["matrix", "tokens"])
@pytest.mark.parametrize("by_channel", [True, False], ids=["channel", "tensor"])
def test_dequantized_weights(by_channel: bool, shape: tuple[int, ...], bias: bool, dialect: str) -> None:
    model = _Dequantized(by_channel, bias).eval()
    compiled = burnish.compile(
        model, passes="canonicalize,dce", inputs=(torch.randn(2, *shape),), backend=f"onnx{{dialect={dialect}}}"
    )
    for batch in (1, 5):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            assert worst_drift([compiled(x)], [model(x)]) <= 1e-6
    graph = compiled.artifact.model.graph.graph  # type: ignore[attr-defined]
    stored = {each.name: each for each in graph.initializer}
    (dequantize,) = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    transposed = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in dequantize.output]
    # Where the rows of the weight have scales of their own, integers are transposed, never what they stand for.
    assert not (by_channel and transposed)
    weights = [each for each in stored.values() if sorted(each.dims) == [4, 6]]
    assert [each.data_type for each in weights] == [onnx.TensorProto.INT8]
