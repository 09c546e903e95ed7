"""quantize-dynamic: integer arithmetic by hand, sharing, what stays float, and the kernels that ONNX Runtime runs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.numerics import worst_drift
from burnish.compiler.pipeline import run_pipeline

_PASSES = "canonicalize,fold-constants,cse,dce,fuse,dce,quantize-dynamic"


def _quantized(program: Program) -> Program:
    return run_pipeline(Pipeline.parse("quantize-dynamic"), program, Context(), verify=4)[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(16, 40), st.integers(16, 40), st.floats(0.01, 100), st.floats(-3, 3), st.booleans())
def test_is_integer_arithmetic(width: int, outputs: int, spread: float, shift: float, biased: bool) -> None:
    """The result is what int32 sums of uint8 times int8 give, scaled once."""
    bias = f"constant @b: f32[{outputs}]\n" if biased else ""
    text = f"""# burnish 1
# facts: canonical
constant @w: f32[{outputs}, {width}]
{bias}graph main(%x: f32[B, 3, {width}]) {{
  %y = aten.linear(%x, @w{", @b" if biased else ""}) : f32[B, 3, {outputs}]
  return %y
}}
"""
    program = Program.parse(text)
    x = torch.randn(4, 3, width, generator=torch.Generator().manual_seed(width)) * spread + shift
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (torch.tensor(high) - torch.tensor(low)) / 255
    zero_point = int((-torch.tensor(low) / scale).round())
    integers = ((x / scale).round() + zero_point).clamp(0, 255).long()
    w = program.constants["w"]
    scales = w.abs().amax(1) / 127
    weights = (w / scales[:, None]).round().long()
    expected = ((integers - zero_point) @ weights.T).double() * (float(scale) * scales.double())
    expected = expected + (program.constants["b"].double() if biased else 0)
    found = _quantized(program)(x=x)
    # A number half-way between two integers may fall to either side: a step of the input, times a weight.
    step = float(scale) * float(w.abs().max())
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max()) + 2 * step
    assert float((found - expected).abs().median()) <= 1e-5 * float(expected.abs().max())


class _Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu") for _ in range(2)
        )
        self.head = torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_onnx_runtime_runs_integer_kernels(tmp_path: Path) -> None:
    model, x = _Encoder().eval(), torch.randn(2, 7, 64)
    compiled = burnish.compile(model, _PASSES, inputs=(x,), backend="onnx")
    more = torch.randn(5, 7, 64)
    with torch.no_grad():
        assert worst_drift([compiled(more)], [model(more)]) < 0.05
    # The lowering itself adds next to nothing: a sum of another order may move a number to the next integer.
    assert worst_drift([compiled(more)], [compiled.program(more)]) < 0.01
    compiled.save(tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(tmp_path / "m.onnx", options)
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node)
    integer = sum(count for name, count in kernels.items() if name in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"))
    # Two layers of attention (in and out) and two of the feed-forward part each, and the head.
    assert integer == 2 * 4 + 1
    assert kernels["MatMul"] == kernels["Gemm"] == kernels["DequantizeLinear"] == 0
    assert (tmp_path / "m.onnx").stat().st_size < 0.4 * 4 * sum(each.numel() for each in model.parameters())


def test_saved_program_and_standard_dialect(tmp_path: Path) -> None:
    model, x = _Encoder().eval(), torch.randn(2, 7, 64)
    compiled = burnish.compile(model, _PASSES, inputs=(x,), backend="onnx{dialect=standard}")
    graph = compiled.artifact.model.graph.graph  # type: ignore[attr-defined]
    assert {node.domain for node in graph.node} == {""}
    assert worst_drift([compiled(x)], [compiled.program(x)]) < 0.01
    compiled.program.save(tmp_path / "m.burnish")
    again = Program.load(tmp_path / "m.burnish")
    assert worst_drift([again(x)], [compiled.program(x)]) == 0
    assert Program.parse(compiled.program.print()).print() == compiled.program.print()


def test_inputs_of_zeros_give_the_bias() -> None:
    model = torch.nn.Linear(32, 32)
    compiled = burnish.compile(model, "canonicalize,quantize-dynamic", inputs=(torch.randn(2, 32),), backend="onnx")
    assert worst_drift([compiled(torch.zeros(3, 32))], [model.bias.detach().expand(3, -1)]) < 1e-6


def test_keep_must_match() -> None:
    with pytest.raises(burnish.PassError, match=r"no layer matches 'tail': there are .*layers.0.linear2"):
        burnish.compile(_Encoder().eval(), _PASSES + "{keep=[tail]}", inputs=(torch.randn(2, 7, 64),), backend="onnx")


def test_weights_that_are_not_finite_stay() -> None:
    model = torch.nn.Linear(32, 32)
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    compiled = burnish.compile(model, "canonicalize,quantize-dynamic", inputs=(torch.ones(2, 32),), verify=0)
    assert "quantized_decomposed" not in compiled.program.print()


def test_layers_on_matrices_run_integer_kernels_too(tmp_path: Path) -> None:
    """Before the pairs are looked at, ONNX Runtime would make a float Gemm of a product and its bias."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 16)).eval()
    x = torch.randn(5, 32)
    compiled = burnish.compile(model, _PASSES, inputs=(x,), backend="onnx")
    assert [each.integer for each in compiled.artifact.integer_kernels().kernels if each.kind == "matmul"] == [True] * 2  # type: ignore[attr-defined]
    with torch.no_grad():
        assert worst_drift([compiled(x[:3])], [model(x[:3])]) < 0.03
