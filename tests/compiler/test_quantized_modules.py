"""Models quantized in eager PyTorch: captured, they compute what torch's integer kernels do, to a step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao import quantization

import burnish
from burnish.compiler.numerics import worst_drift

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="torch has no integer kernels"),
]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.skip = nn.quantized.FloatFunctional()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(self.quant(x))))
        x = self.skip.add(x, self.conv2(x))
        x = torch.max_pool2d(x, 2)
        return self.dequant(self.head(self.pool(x).flatten(1))) * 2


def _observed(model: nn.Module, *inputs: torch.Tensor, fused: bool = False, engine: str = "x86") -> nn.Module:
    model = copy.deepcopy(model).eval()
    if fused:
        model = quantization.fuse_modules(model, [["conv1", "bn1", "relu"]])
    model.qconfig = quantization.get_default_qconfig(engine)  # type: ignore[assignment]
    prepared: nn.Module = quantization.prepare(model)  # type: ignore[no-untyped-call]
    prepared(*inputs)
    return prepared


def test_stubs_alone_are_nothing() -> None:
    model, x = _Net().eval(), torch.randn(2, 3, 16, 16)
    text = burnish.capture(model, (x,)).print()
    assert "quantized_decomposed" not in text and "stub" not in text


def test_converted_model() -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = quantization.convert(_observed(_Net(), x, fused=True))  # type: ignore[no-untyped-call]
    kinds = [type(each) for each in model.modules()]
    program = burnish.capture(model, (x,))
    assert [type(each) for each in model.modules()] == kinds
    assert torch.equal(program.constants["conv1.weight.integers"], model.conv1.weight().int_repr())
    more = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    difference = (program(more) - model(more)).abs()
    # A step of the head, doubled behind it; most results are the same integer.
    assert float(difference.max()) <= 2.01 * model.head.scale
    assert float((difference > 0).float().mean()) < 0.1
    text = program.print()
    # The input, two convolutions, the sum, the pool and the head; no pair behind the float product.
    assert text.count("quantized_decomposed.quantize_per_tensor") == 6
    assert text.count("quantized_decomposed.dequantize_per_channel") == 3


def test_onnx_runs_it_in_integers(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 16, 16)
    model = quantization.convert(_observed(_Net(), x, fused=True))  # type: ignore[no-untyped-call]
    compiled = burnish.compile(model, inputs=(x,))
    assert any("convolution 2 of 2, add 1 of 1" in note and "matmul 1 of 1" in note for note in compiled.report.notes)
    more = torch.randn(16, 3, 16, 16)
    assert float((compiled(more) - model(more)).abs().max()) <= 4.01 * model.head.scale
    compiled.program.save(tmp_path / "m.burnish")
    again = burnish.Program.load(tmp_path / "m.burnish")
    assert worst_drift([again(more)], [compiled.program(more)]) == 0


def test_observed_model_is_what_torch_would_convert_it_to() -> None:
    x = torch.randn(4, 3, 16, 16)
    observed = _observed(_Net(), x)
    low = observed.conv2.activation_post_process.min_val.clone()
    converted = quantization.convert(observed)  # type: ignore[no-untyped-call]
    assert burnish.capture(observed, (x,)).print() == burnish.capture(converted, (x,)).print()
    assert torch.equal(observed.conv2.activation_post_process.min_val, low)


def test_observers_need_data() -> None:
    model = _Net().eval()
    model.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    prepared = quantization.prepare(model)  # type: ignore[no-untyped-call]
    with pytest.raises(burnish.CaptureError, match=r"observer 'quant.activation_post_process' has seen no data"):
        burnish.capture(prepared, (torch.randn(2, 3, 16, 16),))


def test_aware_training_keeps_its_numbers() -> None:
    model, x = _Net().train(), torch.randn(4, 3, 16, 16)
    model = quantization.fuse_modules_qat(model, [["conv1", "bn1", "relu"]])
    model.qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    prepared = quantization.prepare_qat(model)  # type: ignore[no-untyped-call]
    prepared(x)
    prepared.eval()
    converted = quantization.convert(prepared)  # type: ignore[no-untyped-call]
    program = burnish.capture(prepared, (x,))
    assert float((program(x) - converted(x)).abs().max()) <= 2.01 * converted.head.scale


class _Between(nn.Module):
    """A layer between stubs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.quant(x)
        # What is quantized may be read as floats too.
        return self.dequant(self.layers(y)) + 0 * self.dequant(y).mean()


class _Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.functions = nn.ModuleList(nn.quantized.FloatFunctional() for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        add, mul, cat, add_relu, scaled = self.functions
        y = cat.cat([add.add(x, x), mul.mul(x, x)], 1)
        y = add_relu.add_relu(y, y)
        return torch.nn.functional.avg_pool2d(scaled.mul_scalar(y, 0.5), 2)


class _Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.cat([x, x], 1).chunk(2, 1)
        return torch.nn.functional.interpolate(parts[1], scale_factor=2, mode="bilinear")


_IMAGE = (2, 4, 8, 8)
_LAYERS = {
    "conv": ([nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)], _IMAGE),
    "conv-reflect": ([nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect")], _IMAGE),
    "conv1d": ([nn.Conv1d(4, 6, 3, dilation=2)], (2, 4, 16)),
    "conv3d": ([nn.Conv3d(4, 6, 3, bias=False)], (2, 4, 5, 5, 5)),
    "transposed": ([nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)], _IMAGE),
    "linear": ([nn.Linear(8, 5, bias=False), nn.ReLU()], _IMAGE),
    "batch-norm": ([nn.BatchNorm2d(4)], _IMAGE),
    "elu": ([nn.ELU(0.7)], _IMAGE),
    "hardswish": ([nn.Hardswish()], _IMAGE),
    "leaky-relu": ([nn.LeakyReLU(0.2)], _IMAGE),
    "relu6": ([nn.ReLU6()], _IMAGE),
    "prelu": ([nn.PReLU(4)], _IMAGE),
    "layer-norm": ([nn.LayerNorm(8)], _IMAGE),
    "group-norm": ([nn.GroupNorm(2, 4)], _IMAGE),
    "instance-norm": ([nn.InstanceNorm2d(4, affine=True)], _IMAGE),
    "sigmoid": ([nn.Sigmoid()], _IMAGE),
    "tanh": ([nn.Tanh()], _IMAGE),
    "functions": ([_Functions()], _IMAGE),
    "plain": ([_Plain()], _IMAGE),
}


@pytest.mark.parametrize("name", _LAYERS)
def test_each_module(name: str) -> None:
    layers, shape = _LAYERS[name]
    torch.manual_seed(0)
    for each in (parameter for layer in layers for parameter in layer.parameters()):
        nn.init.normal_(each, 0.2, 0.5)
    x = torch.randn(shape)
    # torch has no scales by channel for these.
    observed = _observed(_Between(*layers), x, engine="qnnpack" if name in ("transposed", "prelu") else "x86")
    converted = quantization.convert(observed)  # type: ignore[no-untyped-call]
    program = burnish.capture(converted, (x,))
    expected = converted(x)
    # The step of the result: the least difference of two of its values.
    levels = expected.unique()
    step = float((levels[1:] - levels[:-1]).min())
    difference = (program(x) - expected).abs()
    assert float(difference.max()) <= 1.01 * step
    # Averages often lie half-way between two steps.
    assert float((difference > 0.01 * step).float().mean()) < 0.1


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_dynamic_linear(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16)).eval(), torch.randn(8, 32)
    converted = quantization.quantize_dynamic(model, dtype=dtype)  # type: ignore[no-untyped-call]
    program = burnish.capture(converted, (x,))
    # Of uint8 torch uses half, burnish all.
    assert worst_drift([program(x)], [converted(x)]) < (0.03 if dtype == torch.qint8 else 1e-3)
    assert ("choose_qparams" in program.print()) == (dtype == torch.qint8)


def test_recurrent_layers_are_refused_by_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.memory(x)[0]

    model = quantization.quantize_dynamic(Model().eval())  # type: ignore[no-untyped-call]
    with pytest.raises(burnish.CaptureError, match=r"memory is a .*\.LSTM, of which burnish cannot read the numbers"):
        burnish.capture(model, (torch.randn(2, 3, 8),))


def test_graphs_of_fx_are_refused() -> None:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, x = nn.Sequential(nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    prepared = prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (x,))
    with pytest.raises(burnish.CaptureError, match="prepared for quantization but not converted"):
        burnish.capture(prepared, (x,))
    prepared(x)
    with pytest.raises(burnish.CaptureError, match="a graph of convert_fx"):
        burnish.capture(convert_fx(prepared), (x,))
