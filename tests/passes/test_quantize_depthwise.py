"""What depthwise convolutions read: every channel gets bits of its own, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.numerics import drift
from burnish.compiler.pipeline import run_pipeline

# The same as balanced, but for the widening.
_NARROW = "quantize{preset=fast,observer=mse,correct_biases=true}"
_BETWEEN = {
    "nothing": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "pad": nn.Sequential(nn.ReLU6(), nn.ZeroPad2d((0, 1, 0, 1))),
    "pool": nn.MaxPool2d(2),
}


class _Uneven(nn.Module):
    """A layer whose channels differ in their reach by `spread` powers of two, and a depthwise one that evens them."""

    def __init__(self, between: nn.Module, spread: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.between = between
        with torch.no_grad():
            factors = torch.exp2(-torch.linspace(0, spread, 16)).reshape(-1, 1, 1, 1)
            self.first.weight.mul_(factors)
            self.first.bias.mul_(factors.flatten())
            self.second.weight.div_(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x)))


def _run(passes: str, model: nn.Module, data: list[torch.Tensor]) -> Program:
    program = burnish.capture(model.eval(), (data[0],))
    return run_pipeline(Pipeline.parse(f"canonicalize,{passes},dce"), program, Context(calibration=data))[0]


def _data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 8, 12, 12, generator=generator) * 3 for _ in range(4)]


def _error(program: Program, model: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return max(float((program(x) - model(x)).std() / model(x).std()) for x in data)


@pytest.mark.parametrize("between", _BETWEEN)
def test_small_channels_keep_their_bits(between: str) -> None:
    model, data = _Uneven(_BETWEEN[between], spread=5.0), _data()
    narrow, wide = (_run(passes, model, data) for passes in (_NARROW, "quantize"))
    assert _error(wide, model, data) < _error(narrow, model, data) / 3


def test_the_integers_of_weights_stay() -> None:
    model, data = _Uneven(nn.ReLU(), spread=5.0), _data()
    narrow, wide = (_run(passes, model, data) for passes in (_NARROW, "quantize"))
    integers = [
        [value for name, value in program.constants.items() if name.endswith(".integers") and "weight" in name]
        for program in (narrow, wide)
    ]
    assert len(integers[0]) == 2
    for left, right in zip(*integers, strict=True):
        assert torch.equal(left, right)


@pytest.mark.slow
@given(st.sampled_from(list(_BETWEEN)), st.floats(0, 12), st.sampled_from(["ort", "openvino", "tensorrt"]))
@settings(max_examples=10, deadline=None)
def test_never_worse_than_without(between: str, spread: float, dialect: str) -> None:
    model, data = _Uneven(_BETWEEN[between], spread), _data()
    compiled = [
        burnish.compile(
            model, f"default,{p}", inputs=(data[0],), backend=f"onnx{{dialect={dialect}}}", calibration=data
        )
        for p in (_NARROW, "quantize")
    ]
    with torch.no_grad():
        narrow, wide = (drift(each(data[0]), model(data[0])) for each in compiled)
    assert wide < 1.3 * narrow + 0.01


def test_a_channel_that_is_always_zero() -> None:
    model, data = _Uneven(nn.ReLU(), spread=4.0), _data()
    with torch.no_grad():
        model.first.weight[3], model.first.bias[3] = 0.0, -1.0
    assert _error(_run("quantize", model, data), model, data) < 0.05


def test_what_stays_float_is_not_changed() -> None:
    model, data = _Uneven(nn.ReLU6(), spread=5.0), _data()
    kept = _run("quantize{keep=[second,first]}", model, data)
    outside = [each * 100 for each in data]
    with torch.no_grad():
        assert torch.equal(kept(outside[0]), model(outside[0]))


@pytest.mark.parametrize("reader", ["dense", "output", "silu"])
def test_what_others_read_keeps_its_scale(reader: str) -> None:
    class Shared(_Uneven):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            value = torch.relu(self.first(x))
            if reader == "silu":
                return self.second(nn.functional.silu(value)), value.new_zeros(1)
            other = value if reader == "output" else nn.functional.conv2d(value, torch.ones(16, 16, 1, 1))
            return self.second(value), other

    model, data = Shared(nn.Identity(), 5.0), _data()
    narrow, wide = (_run(passes, model, data) for passes in (_NARROW, "quantize"))
    for left, right in zip(narrow(data[0]), wide(data[0]), strict=True):
        assert torch.equal(left, right)


def test_a_file_of_it_runs_alike(tmp_path: Path) -> None:
    model, data = _Uneven(nn.ReLU6(), spread=5.0), _data()
    compiled = burnish.compile(model, "default,quantize", inputs=(data[0],), backend="torchscript", calibration=data)
    compiled.save(tmp_path / "m.pt")
    assert drift(torch.jit.load(str(tmp_path / "m.pt"))(data[0]), compiled.program(data[0])) < 0.02
