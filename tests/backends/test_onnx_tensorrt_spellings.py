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


def operators(compiled: burnish.Compiled) -> set[str]:
    return {each.op_type for each in compiled.artifact.model.graph.graph.node}  # type: ignore[attr-defined]


class Bounded(nn.Module):
    def __init__(self, least: int | None, most: int | None) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(self.least, self.most) * 2


@pytest.mark.parametrize(("least", "most"), [(-2, 3), (None, 3), (-2, None), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_are_clipped_by_bounds(least: int | None, most: int | None, dtype: torch.dtype) -> None:
    x = torch.arange(-6, 6, dtype=dtype).reshape(2, 6)
    model = Bounded(least, most)
    compiled = burnish.compile(model, inputs=(x,), backend="onnx{dialect=tensorrt}", progress=False)
    assert "Clip" not in operators(compiled)
    torch.testing.assert_close(compiled(x + 1), model(x + 1))


def test_floats_are_clipped_by_clip() -> None:
    compiled = burnish.compile(
        nn.ReLU6(), inputs=(torch.randn(2, 6),), backend="onnx{dialect=tensorrt}", progress=False
    )
    assert "Clip" in operators(compiled)


class Blocks(nn.Module):
    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.options = {"kernel_size": kernel, "stride": stride, "padding": padding}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.fold(nn.functional.unfold(x, **self.options).relu(), x.shape[2:], **self.options)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "rearranged"),
    [((2, 3), (2, 3), 0, True), ((1, 1), (1, 1), 0, True), ((2, 3), (1, 3), 0, False), ((2, 2), (2, 2), 1, False)],
)
def test_blocks_side_by_side_are_rearranged(
    kernel: tuple[int, int], stride: tuple[int, int], padding: int, rearranged: bool
) -> None:
    x = torch.randn(2, 5, 8, 12)
    model = Blocks(kernel, stride, padding)
    compiled = burnish.compile(model, inputs=(x,), backend="onnx{dialect=tensorrt}", progress=False)
    assert ("Col2Im" not in operators(compiled)) is rearranged
    other = torch.randn(3, 5, 8, 12)
    torch.testing.assert_close(compiled(other), model(other))
