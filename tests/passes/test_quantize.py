"""quantize: integer arithmetic by hand, kernels that ONNX Runtime runs, and data that do not fit."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.errors import OptionError
from burnish.compiler.integers import IntegerRules
from burnish.compiler.numerics import worst_drift
from burnish.compiler.pipeline import run_pipeline
from burnish.passes.quantization.plan import Plan
from burnish.passes.quantization.static import Quantize

_PASSES = "default,quantize"


def _data(shape: tuple[int, ...], count: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


class _Residual(nn.Module):
    """A stem, a residual block with a depthwise convolution, squeeze-excitation, pools and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(2))
        self.widen = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.SiLU())
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1))
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(self.widen(x))
        y = self.narrow(y * torch.sigmoid(self.squeeze(y)))
        return self.head(torch.relu(x + y).mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Any]:
    model = _Residual().eval()
    data = _data((4, 3, 32, 32))
    return model, burnish.compile(model, _PASSES, inputs=(data[0],), backend="onnx", calibration=data)


def _kernels(path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".loaded.onnx"))
    onnxruntime.InferenceSession(path, options)
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_a_convolutional_network_runs_whole_in_integers(residual: tuple[nn.Module, Any], tmp_path: Path) -> None:
    model, compiled = residual
    compiled.save(tmp_path / "m.onnx")
    kernels = _kernels(tmp_path / "m.onnx")
    assert kernels["QLinearConv"] == 6
    assert kernels["QLinearAdd"] == 1 and kernels["QLinearMul"] == 1 and kernels["QLinearSigmoid"] == 1
    assert kernels["QGemm"] == 1
    # A small silu computes in floats between pairs; the gate is tiled in integers, a broadcast is slower.
    assert kernels["QuickGelu"] == 1 and kernels["Tile"] == 1
    assert not any(kernels[name] for name in ("Conv", "Gemm", "MatMul", "Add", "Mul", "Sigmoid", "Relu", "Clip"))
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            assert worst_drift([compiled(x)], [model(x)]) < 0.1
        # The lowering adds what one integer up or down makes.
        assert worst_drift([compiled(x)], [compiled.program(x)]) < 0.03


def test_other_dialects_and_the_saved_program(residual: tuple[nn.Module, Any], tmp_path: Path) -> None:
    model, _ = residual
    data = _data((4, 3, 32, 32))
    for dialect in ("standard", "openvino", "tensorrt"):
        compiled = burnish.compile(
            model, _PASSES, inputs=(data[0],), backend=f"onnx{{dialect={dialect}}}", calibration=data
        )
        assert {node.domain for node in compiled.artifact.model.graph.graph.node} == {""}  # type: ignore[attr-defined]
        with torch.no_grad():
            assert worst_drift([compiled(data[1])], [model(data[1])]) < 0.1
        compiled.program.save(tmp_path / "m.burnish")
        assert worst_drift([Program.load(tmp_path / "m.burnish")(data[1])], [compiled.program(data[1])]) == 0
        assert Program.parse(compiled.program.print()).print() == compiled.program.print()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.booleans(), st.floats(0.01, 100), st.floats(-2, 2))
def test_a_convolution_is_integer_arithmetic(
    kernel: int, stride: int, biased: bool, spread: float, shift: float
) -> None:
    """The result is what int32 sums give, scaled, rounded and clipped once."""
    line = "constant @b: f32[6]\n" if biased else ""
    program = Program.parse(f"""# burnish 1
# facts: canonical
constant @w: f32[6, 4, {kernel}, {kernel}]
{line}graph main(%x: f32[B, 4, 9, 9]) {{
  %y = aten.conv2d(%x, @w, {"@b" if biased else "None"}, [{stride}, {stride}])
  return %y
}}
""")
    x = torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(3)) * spread + shift
    quantized = run_pipeline(Pipeline.parse("quantize"), program, Context(calibration=[x]), verify=3)[0]
    numbers = {
        str(node.name): [float(each) if isinstance(each, float) else each for each in node.args[1:3]]
        for node in quantized.graphs["main"].nodes
        if "quantize_per_tensor.default" in str(node.target) and "dequantize" not in str(node.target)
    }
    (scale, zero), (step, point) = numbers.values()
    integers = ((x.double() / scale).round() + zero).clamp(0, 255) - zero
    scales = quantized.constants["w.scales"].double()
    sums = torch.nn.functional.conv2d(integers, quantized.constants["w.integers"].double(), stride=stride)
    # Without a bias it gets one, for what rounding the weights adds.
    bias = quantized.constants["b.integers" if biased else "y.bias.integers"]
    sums = sums + bias.double().reshape(1, -1, 1, 1)
    result = sums * (scale * scales).reshape(1, -1, 1, 1)
    expected = ((result / step).round() + point).clamp(0, 255) - point
    found = (quantized(x).double() / step).round()
    # Half-way cases may fall to either side, of the input too.
    assert float((found - expected).abs().max()) <= 2
    assert float((found != expected).double().mean()) < 0.02


def test_calibration_data_in_every_form() -> None:
    model, items = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval(), _data((2, 3, 8, 8), 4)
    forms: list[Any] = [
        items,
        [(each,) for each in items],
        [{"input": each} for each in items],
        [(each, torch.zeros(2)) for each in items],
        (each for each in items),
    ]
    texts = {
        burnish.compile(model, _PASSES, inputs=(items[0],), calibration=each, verify=0).program.print()
        for each in forms
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "needs calibration data: give calibration="),
        ([], "calibration= is empty"),
        (iter([]), "calibration= is empty"),
        ([torch.zeros(2, 4, 8, 8)], "calibration item 0: input 'input' has size 4 in dimension 1"),
        ([torch.zeros(2, 3, 8, 8), torch.zeros(3)], "calibration item 1: input 'input' must have 4 dimensions"),
        ([torch.zeros(2, 3, 8, 8).double()], "calibration item 0: .*float32.*convert it"),
        ([torch.full((2, 3, 8, 8), math.nan)], "calibration item 0: input 'input' holds NaN or infinity"),
        (["picture.png"], "calibration item 0: input 'input' must be a tensor"),
        (7, "calibration= must be an iterable of inputs, but is int"),
    ],
)
def test_bad_calibration_data(calibration: Any, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval()
    with pytest.raises(burnish.BurnishError, match=message):
        burnish.compile(model, _PASSES, inputs=(torch.randn(2, 3, 8, 8),), calibration=calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{bits=9}", "'bits' must be from 2 to 8"),
        ("{samples=0}", "'samples' must be 1 or more"),
        ("{observer=median}", "'observer' must be 'min-max' or .* or 'mse' or none, but is 'median'"),
        ("{symmetric=yes}", "'symmetric' must be bool or none, but is 'yes'"),
        ("{granularity=row}", "'granularity' must be"),
        ("{keep=[tail]}", r"no layer matches 'tail': there are _1"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    model, items = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval(), _data((2, 3, 8, 8), 1)
    with pytest.raises(burnish.BurnishError, match=message):
        burnish.compile(model, _PASSES + options, inputs=(items[0],), calibration=items)


def test_no_layer_is_a_stated_no_op() -> None:
    compiled = burnish.compile(nn.ReLU(), _PASSES, inputs=(torch.randn(2, 3),), calibration=[torch.randn(2, 3)])
    assert any("quantize found nothing to quantize" in note for note in compiled.report.notes)
    assert "quantized_decomposed" not in compiled.program.print()


def test_a_channel_of_zeros_and_a_constant_activation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)).eval()
    with torch.no_grad():
        model[0].weight[3] = 0  # type: ignore[index,union-attr,operator]
        model[0].weight[4:] = 0  # type: ignore[index,union-attr,operator]
        model[0].weight[:3] = 0  # type: ignore[index,union-attr,operator]
        model[0].bias[:] = 2.5  # type: ignore[index,union-attr,operator]
    items = _data((2, 3, 4, 4), 2)
    compiled = burnish.compile(model, _PASSES, inputs=(items[0],), calibration=items, backend="onnx")
    with torch.no_grad():
        assert worst_drift([compiled(items[1])], [model(items[1])]) < 0.02


def test_large_biases_fit() -> None:
    """A bias far beyond what its weights can give keeps its digits."""
    model = nn.Conv2d(3, 4, 1).eval()
    with torch.no_grad():
        model.weight *= 1e-9
        model.bias += torch.tensor([1.0, -2.0, 3.0, 100.0])
    items = _data((2, 3, 4, 4), 2)
    compiled = burnish.compile(model, _PASSES, inputs=(items[0],), calibration=items, backend="onnx")
    with torch.no_grad():
        assert worst_drift([compiled(items[1])], [model(items[1])]) < 0.005


@pytest.mark.parametrize("backend", ["onnx", "onnx{dialect=openvino}", "onnx{dialect=tensorrt}", "torchscript"])
def test_large_biases_of_linear_layers_fit(backend: str) -> None:
    """ONNX Runtime quantizes a constant float bias too, and clips it where the scale of the weight is too small."""
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 24)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)  # type: ignore[operator]
        model[0].bias.mul_(1e4)  # type: ignore[operator]
    items = _data((3, 32), 6)
    compiled = burnish.compile(model, _PASSES, inputs=(items[0],), calibration=items, backend=backend)
    with torch.no_grad():
        assert worst_drift([compiled(items[1])], [model(items[1])]) < 0.02


@pytest.mark.parametrize("backend", ["onnx", "onnx{dialect=openvino}", "torchscript"])
def test_the_bias_of_a_channel_of_zeros_keeps_its_digits(backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
    items = [10 * each for each in _data((3, 8, 8, 8), 4)]
    compiled = burnish.compile(model, _PASSES, inputs=(items[0],), calibration=items, backend=backend)
    assert compiled.program.print().count("quantize_per_tensor") >= 4
    with torch.no_grad():
        assert worst_drift([compiled(items[1])], [model(items[1])]) < 0.01


@pytest.mark.parametrize(("weight", "factor"), [(1.0, 1e-35), (1e-32, 1.0)])
def test_what_no_scale_fits_stays_float(weight: float, factor: float) -> None:
    """Weights and activations so small that their integers would all be zero."""

    class _Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 8, 3, bias=False)
            self.first.weight.data *= weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x * factor))) * 1e20

    model, items = _Tiny().eval(), _data((2, 3, 8, 8), 2)
    compiled = burnish.compile(model, _PASSES, inputs=(items[0],), calibration=items)
    skipped = " ".join(each.reason for record in compiled.report.records for each in record.skips)
    assert "too small for a scale" in skipped
    with torch.no_grad():
        assert worst_drift([compiled.program(items[1])], [model(items[1])]) < 0.02


def test_a_convolution_and_a_linear_layer_read_one_value() -> None:
    """Their channels are different dimensions, and the means for the biases with them."""

    class _Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(16, 16, 3), nn.Linear(16, 32)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.conv(x), self.linear(x)

    shift = torch.linspace(-5, 5, 16)
    model, both = _Both().eval(), [each + shift for each in _data((3, 16, 16, 16), 4)]
    for dims, index in (((0, 2, 3), 0), ((0, 1, 2), 1)):
        # What one of the two reads has a mean by channel, and what the other reads then has none.
        items, shifts = [each if index else each.transpose(1, 3).contiguous() for each in both], []
        for corrects in ("true", "false"):
            options = f"{{correct_biases={corrects},bits=3}}"
            compiled = burnish.compile(model, _PASSES + options, inputs=(items[0],), calibration=items)
            with torch.no_grad():
                found = compiled.program(items[1])[index] - model(items[1])[index]
            shifts.append(float(found.mean(dims).abs().max()))
        assert shifts[0] < 0.2 * shifts[1]


def test_a_concatenation_of_other_types_stays_float() -> None:
    class _Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)

        def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
            return self.second(torch.cat([self.first(x), steps], 1))

    model, steps = _Cat().eval(), torch.randint(-3, 4, (2, 8, 4, 4))
    items = [(each, steps) for each in _data((2, 8, 4, 4), 4)]
    compiled = burnish.compile(model, _PASSES, inputs=items[0], calibration=items, backend="onnx")
    with torch.no_grad():
        assert worst_drift([compiled(*items[1])], [model(*items[1])]) < 0.03


@pytest.mark.parametrize("passes", [_PASSES, "default,quantize-dynamic"])
def test_a_layer_on_a_vector_stays_float(passes: str) -> None:
    """libtorch has no kernel for it, and OpenVINO gives its result a dimension more."""
    model, items = nn.Linear(32, 48).eval(), _data((32,), 4)
    compiled = burnish.compile(model, passes, inputs=(items[0],), calibration=items)
    assert "quantized_decomposed" not in compiled.program.print()
    reasons = [each.reason for record in compiled.report.records for each in record.skips]
    assert reasons == ["it reads a single vector: integer kernels take matrices"]


def test_an_endless_generator_is_read_as_far_as_needed() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32)).eval()
    fetched: list[torch.Tensor] = []

    def endless() -> Any:
        while True:
            assert len(fetched) < 20, "read on"
            fetched.append(torch.randn(5, 32))
            yield fetched[-1]

    passes = "default,smooth-quant{samples=11},quantize{samples=18}"
    burnish.compile(model, passes, inputs=(torch.randn(2, 32),), calibration=endless(), verify=0)
    assert len(fetched) == 4


def test_samples_limit_the_data() -> None:
    """Data behind the wanted samples are not read."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval()

    def endless() -> Any:
        for index in range(1000):
            assert index < 3, "read on"
            yield torch.randn(5, 3, 8, 8)

    class _Data:
        def __iter__(self) -> Any:
            return endless()

    burnish.compile(model, _PASSES + "{samples=11}", inputs=(torch.randn(2, 3, 8, 8),), calibration=_Data(), verify=0)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [({"preset": "quick"}, "preset"), ({"bits": "8"}, "bits"), ({"observer": "x"}, "observer"), ({"keep": 5}, "keep")],
)
def test_options_given_in_python_are_checked(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(OptionError, match=f"pass 'quantize': option '{wrong}' must be"):
        Quantize(**given)
    assert Quantize(keep="head").keep == Quantize(keep=["head"]).keep == ("head",)


class _Behind(nn.Module):
    """A layer that reads another's result through something."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        if self.form == "select":
            y = y[:, 0]
        elif self.form == "split":
            y = y.split([2, 3], 1)[1]
        elif self.form == "pad":
            y = nn.functional.pad(y, (0, 0, 1, 1))
        else:
            y = y.unsqueeze(1).expand(-1, 3, -1, -1)
        return self.second(y)


@pytest.mark.parametrize("form", ["select", "split", "pad", "expand"])
def test_a_layer_behind_what_hides_the_pair_runs_in_integers(form: str) -> None:
    data = _data((4, 5, 32))
    compiled = burnish.compile(_Behind(form).eval(), _PASSES, inputs=(data[0],), backend="onnx", calibration=data)
    assert compiled.artifact.integer_kernels().share == 1.0
    for batch in (1, 3):
        x = torch.randn(batch, 5, 32)
        assert worst_drift([compiled(x)], [compiled.program(x)]) < 0.03


def test_a_product_of_matrices_under_an_activation_runs_in_integers() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + torch.relu(self.right(x))

    data = _data((4, 32))
    compiled = burnish.compile(Gated().eval(), _PASSES, inputs=(data[0],), backend="onnx", calibration=data)
    assert compiled.artifact.integer_kernels().share == 1.0


def test_planning_is_linear_in_rearrangements() -> None:
    def seconds(count: int) -> float:
        views = [f"  %v{index + 1} = aten.view(%v{index}, [-1, 32])" for index in range(count)]
        lines = [
            "# burnish 1",
            "constant @w: f32[32, 32]",
            "graph main(%x: f32[B, 32]) {",
            "  %v0 = aten.linear(%x, @w)",
        ]
        text = "\n".join([*lines, *views, f"  %y = aten.linear(%v{count}, @w)", "  return %y", "}", ""])
        graph = Program.parse(text).graphs["main"]
        layers = {node for node in graph.nodes if "linear" in str(node.target)}
        start = time.process_time()
        Plan.of([graph], layers, everything=True, rules=IntegerRules(), never=set())
        return time.process_time() - start

    small, large = (min(seconds(count) for _ in range(3)) for count in (500, 4_000))
    # Eight times the nodes; a walk back from each would take 64 times as long.
    assert large < 24 * small


def test_a_kept_layer_is_float_in_the_session_that_answers() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    data = _data((4, 3, 16, 16))
    compiled = burnish.compile(
        Pair().eval(), "default,quantize{keep=[second]}", inputs=(data[0],), backend="onnx", calibration=data
    )
    before = compiled(data[1])
    assert [each.node for each in compiled.artifact.integer_kernels().kernels if not each.integer and each.macs]
    # Looking at the kernels opens another session: it must compute what the first did.
    assert torch.equal(compiled(data[1]), before)
