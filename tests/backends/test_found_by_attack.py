"""Wrong results that reviews found, on every backend: each must agree with eager, or be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish.compiler.numerics import worst_drift

BACKENDS = ("onnx", "torchscript")


class Wrap(nn.Module):
    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)
        self.register_buffer("w", torch.ones(3))

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self, *args)


def norm(features: int) -> nn.BatchNorm1d:
    made = nn.BatchNorm1d(features)
    with torch.no_grad():
        for value in (made.running_mean, made.weight, made.bias):
            value.normal_()
        made.running_var.uniform_(0.5, 2)
    return made


CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    # TorchScript's own folding took dimension 1 for the features.
    "linear-norm-square": (nn.Sequential(nn.Linear(4, 4), norm(4)), (2, 4, 4)),
    "linear-norm": (nn.Sequential(nn.Linear(4, 5), norm(3)), (2, 3, 4)),
    "unbatched-conv-norm": (nn.Sequential(nn.Conv1d(3, 5, 1), norm(5)), (5, 3, 5)),
    "as-strided": (Wrap(lambda m, x: x.t().contiguous()[0:3].as_strided((2, 2), (2, 1)) * 2), (4, 4)),
    "as-strided-of-a-view": (Wrap(lambda m, x: x.t().as_strided((2, 2), (3, 1)) * 2), (4, 4)),
    "masked": (Wrap(lambda m, x: x[x > 0]), (3, 3)),
    "scattered-mean": (
        Wrap(lambda m, x: torch.zeros(3).scatter_reduce(0, torch.tensor([0, 0, 1]), x[0], "mean")), (2, 3),
    ),
}  # fmt: skip

REFUSED = ("as-strided-of-a-view", "scattered-mean")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_eager_or_is_refused(name: str, backend: str) -> None:
    model, shape = CASES[name]
    model.eval()
    if backend == "onnx" and name in REFUSED:
        with pytest.raises(burnish.BackendError, match=r"strides|scattered mean"):
            burnish.compile(model, inputs=(torch.randn(shape),), backend=backend)
        return
    compiled = burnish.compile(model, inputs=(torch.randn(shape),), backend=backend, verify=0)
    x = torch.randn(shape)
    assert worst_drift([compiled(x)], [model(x).detach()]) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_not_the_weights_or_the_inputs(backend: str) -> None:
    model = Wrap(lambda m, x: (m.w.clone(), x.clone(), x.reshape(-1), x * m.w))
    x = torch.ones(2, 3)
    compiled = burnish.compile(model, inputs=(x,), backend=backend)
    for result in compiled(x):
        result.fill_(100.0)
    assert torch.equal(x, torch.ones(2, 3))
    assert [float(each.max()) for each in compiled(x)] == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parsed_program_with_equal_types_keeps_its_operands_apart(backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        for value in (model[1].running_mean, model[1].weight, model[1].bias):
            value.normal_()
    captured = burnish.capture(model, (torch.randn(2, 3, 8, 8),))
    parsed = burnish.Program.parse(captured.print(), captured.constants)
    x = torch.randn(2, 3, 8, 8)
    compiled = burnish.compile(parsed, passes="dce", backend=backend, verify=0)
    assert worst_drift([compiled(x)], [model(x).detach()]) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_artifact_goes_on_from_the_present_state(backend: str, tmp_path: Any) -> None:
    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n += 1
            return x + self.n

    compiled = burnish.compile(Count(), inputs=(torch.zeros(2),), backend=backend)
    for _ in range(3):
        compiled(torch.zeros(2))
    path = tmp_path / ("n.onnx" if backend == "onnx" else "n.pt")
    compiled.save(path)
    assert float(burnish.load(path)(torch.zeros(2))[0]) == 4.0
    compiled.reset()
    assert float(compiled(torch.zeros(2))[0]) == 1.0
