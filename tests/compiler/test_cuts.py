"""Cut points: where all work goes through one value."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import burnish
from burnish import Program
from burnish.compiler.cuts import apart, cut_points
from burnish.compiler.graphs import calls, name_of


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x + self.outer(self.inner(x).relu()))


class _Skip(nn.Module):
    """A U: the first level is read by the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.down, self.up, self.last = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = self.top(x)
        return self.last(torch.cat([top, self.up(self.down(top).relu())], 1))


class _Masked(nn.Module):
    """A mask that every layer reads, made of the input without work."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = (x > 0).to(x.dtype)
        for layer in self.layers:
            x = layer(x) * mask
        return x


def _cuts(model: nn.Module) -> list[str]:
    torch.manual_seed(0)
    cuts = cut_points(burnish.capture(model.eval(), (torch.randn(2, 8),)))
    assert [cut.number for cut in cuts] == list(range(len(cuts)))
    return [name_of(cut.value) for cut in cuts]


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), ["_0", "_1", "_2"]),
        (_Residual(), ["first", "add", "last"]),
        (_Skip(), ["top", "cat", "last"]),
        (_Masked(), ["layers.0", "mul", "layers.1", "mul_1", "layers.2", "mul_2"]),
        (nn.ReLU(), []),
    ],
)
def test_all_work_goes_through_them(model: nn.Module, values: list[str]) -> None:
    assert _cuts(model) == values


def test_cost_is_that_of_the_work_before() -> None:
    program = burnish.capture(_Skip().eval(), (torch.randn(2, 8),))
    cuts = cut_points(program)
    assert [cut.macs for cut in cuts] == [2 * 64, 2 * (64 + 32 + 32), 2 * (64 + 32 + 32 + 48)]
    (graph,) = program.graphs.values()
    for cut in cuts:
        behind = {node for node in calls(graph) if cut.value in _above(node)}
        assert {*cut.behind()} == behind == {node for node in calls(graph) if cut.is_before(node)}
    assert [name_of(cut.value) for cut in apart(cuts)] == ["top", "cat", "last"]


def _above(node: torch.fx.Node) -> set[torch.fx.Node]:
    found = set(node.all_input_nodes)
    return found.union(*(_above(each) for each in found))


def test_time_is_linear_in_layers() -> None:
    def seconds(count: int) -> float:
        lines = [f"  %v{index + 1} = aten.linear(%v{index}, @w)" for index in range(count)]
        head = ["# burnish 1", "constant @w: f32[4, 4]", "graph main(%v0: f32[3, 4]) {"]
        program = Program.parse("\n".join([*head, *lines, f"  return %v{count}", "}", ""]))
        program.cost()
        start = time.process_time()
        assert len(cut_points(program)) == count
        return time.process_time() - start

    small, large = (min(seconds(count) for _ in range(3)) for count in (250, 2_000))
    # Eight times the layers; a set of what is behind for each would take 64 times as long.
    assert large < 24 * small
