"""What files for other readers than ONNX Runtime spell as TensorRT wants it."""

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


class Largest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.topk(3, sorted=False).values.sum(-1)


@pytest.mark.parametrize("dialect", ["ort", "tensorrt"])
def test_the_largest_are_sorted(dialect: str) -> None:
    x = torch.randn(2, 8)
    compiled = burnish.compile(Largest(), inputs=(x,), backend=f"onnx{{dialect={dialect}}}", progress=False)
    (node,) = [each for each in compiled.artifact.model.graph.graph.node if each.op_type == "TopK"]  # type: ignore[attr-defined]
    (chosen,) = [each.i for each in node.attribute if each.name == "sorted"]
    assert chosen == (dialect == "tensorrt")
    torch.testing.assert_close(compiled(x), Largest()(x))
