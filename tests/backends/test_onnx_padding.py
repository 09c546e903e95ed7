"""Zeros before a convolution become its own in the file, between floats and between integers, on any sides."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish.compiler.numerics import drift


class _Padded(nn.Module):
    def __init__(self, pad: list[int], mode: str = "constant", value: float | None = 0.0, shared: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.pad, self.mode, self.value, self.shared = pad, mode, value, shared

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        padded = nn.functional.pad(torch.relu(self.first(x)), self.pad, self.mode, self.value)
        return (self.second(padded), padded) if self.shared else self.second(padded)


def _compiled(model: nn.Module, passes: str, dialect: str) -> burnish.Compiled:
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 12, 12) for _ in range(4)]
    backend = f"onnx{{dialect={dialect}}}"
    return burnish.compile(model.eval(), passes, inputs=(data[0],), backend=backend, calibration=data)


def _operators(compiled: burnish.Compiled, folder: Path) -> list[str]:
    """Return the operators in the file, of which no constant may be left over."""
    path = folder / "model.onnx"
    compiled.save(path)
    graph = onnx.load(path).graph
    assert {each.name for each in graph.initializer} <= {name for node in graph.node for name in node.input}
    return [node.op_type for node in graph.node]


@pytest.mark.parametrize("dialect", ["ort", "standard", "openvino", "tensorrt"])
@pytest.mark.parametrize("passes", ["default", "default,quantize"])
def test_no_pad_is_left(passes: str, dialect: str, tmp_path: Path) -> None:
    found = _operators(_compiled(_Padded([0, 1, 2, 0]), passes, dialect), tmp_path)
    assert "Conv" in found
    assert "Pad" not in found


@given(st.lists(st.integers(-1, 3), min_size=2, max_size=4).filter(lambda pad: len(pad) % 2 == 0), st.booleans())
@settings(max_examples=12, deadline=None)
def test_the_numbers_stay(pad: list[int], quantize: bool) -> None:
    model = _Padded(pad)
    compiled = _compiled(model, "default,quantize" if quantize else "default", "ort")
    x = torch.randn(2, 3, 12, 12)
    expected = compiled.program(x)
    # Of integers a sum on the edge of two steps may fall to either side.
    assert drift(compiled(x), expected) < (0.02 if quantize else 1e-5)


@pytest.mark.parametrize(
    "model",
    [
        _Padded([0, 1, 0, 1], value=0.5),
        _Padded([0, 1, 0, 1], mode="reflect", value=None),
        _Padded([-1, 1, 0, 1]),
        _Padded([0, 1, 0, 1, 0, 16]),
    ],
    ids=["not zeros", "not constant", "cuts", "channels"],
)
def test_other_pads_stay(model: _Padded, tmp_path: Path) -> None:
    if len(model.pad) == 6:
        model.second = nn.Conv2d(32, 16, 3, groups=16)
    compiled = _compiled(model, "default", "ort")
    assert "Pad" in _operators(compiled, tmp_path)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert drift(compiled(x), model(x)) < 1e-5


@pytest.mark.parametrize("passes", ["default", "default,quantize"])
def test_a_pad_that_is_an_output_stays_for_that(passes: str, tmp_path: Path) -> None:
    compiled = _compiled(_Padded([0, 1, 0, 1], shared=True), passes, "ort")
    assert _operators(compiled, tmp_path).count("Pad") == 1
    x = torch.randn(2, 3, 12, 12)
    for actual, expected in zip(compiled(x), compiled.program(x), strict=True):
        assert drift(actual, expected) < (0.02 if "quantize" in passes else 1e-5)
