"""Every Squeeze in files for other readers than ONNX Runtime names what it removes: TensorRT wants it so."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

import burnish


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], -1) + x.squeeze(-1)


@pytest.mark.parametrize("dialect", ["standard", "tensorrt", "openvino"])
def test_squeezes_name_their_axes(dialect: str) -> None:
    x = torch.randn(3, 5, 1)
    compiled = burnish.compile(Sizes(), inputs=(x,), backend=f"onnx{{dialect={dialect}}}", progress=False)
    artifact = compiled.artifact
    nodes: list[onnx.NodeProto] = [each for each in artifact.model.graph.graph.node if each.op_type == "Squeeze"]  # type: ignore[attr-defined]
    assert len(nodes) >= 2
    assert all(len(each.input) == 2 for each in nodes)
    other = torch.randn(7, 5, 1)
    torch.testing.assert_close(compiled(other), Sizes()(other))
