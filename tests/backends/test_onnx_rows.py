"""Rows that are taken and put back: right along every dimension, and a node each where early exits do it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import burnish


class Rows(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.index_select(self.dim, index), x.index_copy(self.dim, index, rows)


class Exit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.first(x)[:, :3]
        stay = (early.softmax(-1).amax(-1) < 0.5).nonzero().select(1, 0)
        late = self.second(x.index_select(0, stay))
        sums = late * late.reshape(-1, 3, 1).sum(2) * late.amax(1, keepdim=True)
        return early.index_copy(0, stay, sums)


@pytest.mark.parametrize("options", ["", "{dialect=standard}", "{opset=18}", "{runtime=openvino}"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_rows_along_a_dimension(dim: int, options: str) -> None:
    x, index = torch.randn(5, 6, 7), torch.tensor([3, 1])
    inputs = (x, index, torch.randn_like(x.index_select(dim, index)))
    model = Rows(dim)
    compiled = burnish.compile(
        model, [], inputs=inputs, dynamic_shapes=({}, {}, {}), backend=f"onnx{options}", progress=False
    )
    for actual, wanted in zip(compiled(*inputs), model(*inputs), strict=True):
        assert torch.equal(actual, wanted)


def test_a_row_by_a_number_and_a_tensor_without_rows() -> None:
    for x, index in ((torch.randn(5), torch.tensor(2)), (torch.randn(()), torch.tensor([0]))):
        inputs = (x, index, torch.tensor(7.0))
        compiled = burnish.compile(Rows(0), [], inputs=inputs, dynamic_shapes=({}, {}, {}), progress=False)
        for actual, wanted in zip(compiled(*inputs), Rows(0)(*inputs), strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("options", ["", "{runtime=openvino}"])
def test_an_exit_takes_few_nodes(options: str) -> None:
    model, x = Exit().eval(), 3 * torch.randn(8, 4)
    compiled = burnish.compile(model, "default", inputs=(x,), backend=f"onnx{options}", progress=False)
    counts = Counter(node.op_type for node in compiled.artifact.model.graph.graph.node)  # type: ignore[attr-defined]
    assert (counts["NonZero"], counts["GatherND"], counts["ScatterND"]) == (1, 1, 1)
    assert not {"Gather", "Expand", "Shape", "ScatterElements"} & set(counts)
    # All stay, some, and none: of reductions without rows ONNX Runtime gives other shapes.
    for scale in (0.0, 1.0, 1e3):
        torch.testing.assert_close(compiled(scale * x), model(scale * x), rtol=1e-5, atol=1e-5)
