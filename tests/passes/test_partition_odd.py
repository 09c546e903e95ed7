"""partition on what reviewers broke it with: buffers, names, dynamic ranges, sizes that data decide, no-ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish import PassError

X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


class _Layers(nn.Module):
    def __init__(self, function: Any, count: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, *given: torch.Tensor) -> Any:
        return self.function(self, *given)


def _returns_buffer(self: _Layers, x: torch.Tensor) -> Any:
    h = self.layers[0](x)
    self.seen.add_(1)
    return self.layers[2](self.layers[1](h).relu()), self.seen


def _returns_old_and_new(self: _Layers, x: torch.Tensor) -> Any:
    old = self.seen * 3
    h = self.layers[1](self.layers[0](x).relu())
    self.seen.add_(h.mean(0))
    return self.layers[2](h), old, self.seen + 1


def _reads_before(self: _Layers, x: torch.Tensor) -> Any:
    before = self.seen.clone()
    self.seen.mul_(0.5).add_(x.mean(0))
    return self.layers[2](self.layers[1](self.layers[0](x).relu())) + self.seen, before


@pytest.mark.parametrize("function", [_returns_buffer, _returns_old_and_new, _reads_before])
@pytest.mark.parametrize("backend", ["onnx", "torchscript", "stages"])
@pytest.mark.parametrize("stages", [2, 3])
def test_buffers_are_those_of_the_model(function: Any, backend: str, stages: int) -> None:
    passes = f"canonicalize,partition{{stages={stages}}}"
    cut = burnish.compile(_Layers(function).eval(), passes, inputs=(X,), backend=backend, progress=False)
    model = _Layers(function).eval()
    cut.reset()
    for call in range(3):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(call))
        torch.testing.assert_close(cut(x), tuple(each.clone() for each in model(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_ranges_of_a_call_stay_with_their_kernels(count: int, backend: str) -> None:
    passes, x = "default,quantize-dynamic", torch.randn(4, 10, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(3))).eval()
    whole, cut = (
        burnish.compile(model, f"{passes}{after}", inputs=(x,), backend=backend, progress=False)
        for after in ("", f",partition{{stages={count}}}")
    )
    torch.testing.assert_close(cut(x), whole(x), rtol=1e-4, atol=1e-5)
    if backend == "onnx":
        kernels = [[row.operator for row in each.profile()] for each in (whole, cut)]
        assert kernels[0].count("DynamicQuantizeMatMul") == kernels[1].count("DynamicQuantizeMatMul") == 3


def _chosen_rows(self: _Layers, x: torch.Tensor) -> torch.Tensor:
    h = self.layers[0](x)
    return self.layers[2](self.layers[1](h[h[:, 0] > 0]).relu())


def _scattered(self: _Layers, x: torch.Tensor) -> torch.Tensor:
    h = self.layers[0](x)
    places = (h[:, 0] > 0).nonzero()[:, 0]
    rest = self.layers[2](self.layers[1](h.index_select(0, places)).relu())
    return torch.index_copy(h, 0, places, rest)


@pytest.mark.parametrize("function", [_chosen_rows, _scattered])
@pytest.mark.parametrize("backend", ["onnx", "torchscript", "stages"])
def test_sizes_that_data_decide_cross(function: Any, backend: str) -> None:
    model = _Layers(function).eval()
    cut = burnish.compile(model, "default,partition{stages=3}", inputs=(X,), backend=backend, progress=False)
    for x in (X, X[:1], -100 * torch.ones(2, 8), 100 * torch.ones(3, 8)):
        torch.testing.assert_close(cut(x), model(x), rtol=1e-4, atol=1e-5)


def _no_ops(self: _Layers, x: torch.Tensor, ids: torch.Tensor) -> Any:
    h = self.layers[1](self.layers[0](x).relu())
    return h, ids.to(torch.int64), torch.zeros(2, dtype=torch.int64), x.half().float(), h * 1, h.to(torch.float32) + 0


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "stages"])
@pytest.mark.parametrize("count", [2, 3])
def test_what_does_nothing_is_no_stage(backend: str, count: int) -> None:
    model, ids = _Layers(_no_ops, 2).eval(), torch.arange(8)
    cut = burnish.compile(
        model, f"partition{{stages={count}}}", inputs=(X, ids), backend=backend, progress=False
    )  # fmt: skip
    torch.testing.assert_close(cut(X, ids), model(X, ids), rtol=1e-4, atol=1e-5)


class _SameName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.first(x).relu()
        return {"x": h, "y": self.second(h) + x}


def test_an_output_has_not_the_name_of_an_input() -> None:
    with pytest.raises(PassError, match="'x' is an input and another output"):
        burnish.compile(_SameName().eval(), "partition", inputs=(X,), progress=False)
    with pytest.raises(PassError, match=r"there is no cut point|keep one with select-outputs"):
        burnish.compile(_SameName().eval(), "insert-exits", inputs=(X,), progress=False)


@pytest.mark.parametrize("same", [torch.ones(4, 8), torch.ones(1, 8), X[:1].repeat(4, 1)])
def test_equal_samples_show_what_mixes_samples(same: torch.Tensor) -> None:
    def mixes(self: _Layers, x: torch.Tensor) -> torch.Tensor:
        h = self.layers[1](self.layers[0](x).relu()).relu()
        return self.layers[2](h - h.mean(0, keepdim=True))

    with pytest.raises(PassError, match="depends on the others of its batch"):
        burnish.compile(_Layers(mixes).eval(), "canonicalize,insert-exits", inputs=(same,), progress=False,
                        dynamic_shapes={"given": ({0: torch.export.Dim("batch")},)})  # fmt: skip
