"""Quantized Programs in TorchScript: integer kernels run, the numbers hold, and plain PyTorch loads the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish.backends.torchscript import TorchScriptBackend
from burnish.backends.torchscript.quantized_arithmetic import ARITHMETIC
from burnish.compiler.capture import capture
from burnish.compiler.operators import find_operator
from burnish.compiler.program import Program

BACKEND = TorchScriptBackend()
LIBRARY = torch.ops.quantized_decomposed
FUSED = "canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse"
FLOAT_LAYERS = ("conv1d", "conv2d", "convolution", "linear", "addmm", "_linear_pointwise", "_convolution_pointwise")
find_operator("quantized_decomposed.quantize_per_tensor")

needs_kernels = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="this processor has no such kernels"
)


class Cnn(nn.Module):
    """A stem, a residual block, a depthwise layer between pools, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.left, self.right = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(16, 24, 1), nn.SiLU())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Sigmoid())
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.stem(x), 3, 2, 1)
        x = torch.relu(self.right(torch.relu(self.left(x))) + x)
        x = self.point(self.depthwise(x))
        x = torch.cat([x * self.squeeze(x), torch.nn.functional.leaky_relu(x)], 1)
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


class Block(nn.Module):
    """A transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = (each.view(n, t, 4, 8).transpose(1, 2) for each in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, 32))
        result: torch.Tensor = x + self.down(torch.nn.functional.gelu(self.up(x)))
        return result


class Function(nn.Module):
    def __init__(self, function: Any, **held: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in held.items():
            self.register_buffer(name, value)

    def forward(self, *given: torch.Tensor) -> Any:
        return self.function(self, *given)


def compiled(model: nn.Module, passes: str, *shape: int) -> Any:
    """Return the compiled model, with weights and data from one seed."""
    torch.manual_seed(0)
    for each in model.modules():
        if isinstance(each, (nn.Conv2d, nn.Linear)):
            each.reset_parameters()
    data = [(torch.randn(4, *shape),) for _ in range(4)]
    return burnish.compile(
        model.eval(), inputs=data[0], backend="torchscript", passes=f"{FUSED},{passes},dce", calibration=data
    )


def kernels(call: Any, *inputs: torch.Tensor) -> list[str]:
    """Return the operators that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call(*inputs)
    return [event.name for event in profiler.events()]


def ran(events: list[str], namespace: str = "quantized::") -> dict[str, int]:
    found = [each.removeprefix(namespace) for each in events if each.startswith(namespace)]
    return {each: found.count(each) for each in sorted(set(found))}


def float_layers(events: list[str]) -> list[str]:
    names = [each.partition("::") for each in events]
    return ["".join(each) for each in names if each[0] in ("aten", "mkldnn") and each[2] in FLOAT_LAYERS]


def steps(program: Program, name: str = "quantize_per_tensor") -> float:
    """Return the largest scale in `program`."""
    nodes = [node for graph in program.graphs.values() for node in graph.nodes]
    return max(float(node.args[1]) for node in nodes if f"{name}.default" in str(node.target))


@needs_kernels
def test_a_network_of_convolutions() -> None:
    result = compiled(Cnn(), "quantize", 3, 32, 32)
    events = kernels(result.artifact, torch.randn(2, 3, 32, 32))
    assert float_layers(events) == []
    assert ran(events) == {
        "conv2d": 3,
        "conv2d_relu": 3,
        "add_relu": 1,
        "cat": 1,
        "leaky_relu": 1,
        "mul": 1,
        "sigmoid": 1,
        "linear_with_input_q_dq_qweight_dq_output_fp32": 1,
    }
    for batch in (1, 3, 4):
        x = torch.randn(batch, 3, 32, 32)
        # The head adds up what rounding to the other side changes by one step in the means.
        torch.testing.assert_close(result.artifact(x), result.program(x), rtol=0, atol=2e-3)


@needs_kernels
@pytest.mark.parametrize("kind", ["linear_with_input_q_dq_qweight_dq_output_fp32", "linear_dynamic"])
def test_a_transformer(kind: str) -> None:
    result = compiled(Block(), "quantize" if kind != "linear_dynamic" else "quantize-dynamic", 5, 32)
    events = kernels(result.artifact, torch.randn(2, 5, 32))
    assert ran(events) == {kind: 4} and float_layers(events) == []
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 32)
        torch.testing.assert_close(result.artifact(x), result.program(x), rtol=0, atol=5e-3)


@needs_kernels
@pytest.mark.parametrize(
    ("model", "shape", "passes"),
    [(Cnn, (3, 32, 32), "quantize"), (Block, (5, 32), "quantize"), (Block, (5, 32), "quantize-dynamic")],
)
def test_plain_pytorch_loads_the_file(tmp_path: Path, model: Any, shape: tuple[int, ...], passes: str) -> None:
    result = compiled(model(), passes, *shape)
    file, x = tmp_path / "model.pt", torch.randn(3, *shape)
    result.save(file)
    expected = result.artifact(x)
    torch.save((x, expected), tmp_path / "data.pt")
    code = f"""
import sys, torch
module = torch.jit.load({str(file)!r})
x, expected = torch.load({str(tmp_path / "data.pt")!r})
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
    result = module(x)
assert "burnish" not in sys.modules
assert any(each.name.startswith("quantized::") for each in profiler.events())
assert torch.equal(result, expected), (result - expected).abs().max()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert torch.equal(burnish.load(file)(x), expected)


def lowered(model: nn.Module, *inputs: torch.Tensor) -> tuple[Program, Any]:
    program = capture(model.eval(), inputs)
    return program, BACKEND.emit(program, {})


def pair(x: torch.Tensor, scale: float, point: int) -> torch.Tensor:
    numbers = (scale, point, 0, 255, torch.uint8)
    result: torch.Tensor = LIBRARY.dequantize_per_tensor(LIBRARY.quantize_per_tensor(x, *numbers), *numbers)
    return result


def fixed(m: Any, name: str = "weight") -> torch.Tensor:
    result: torch.Tensor = LIBRARY.dequantize_per_channel(getattr(m, name), m.scales, None, 0, -128, 127, torch.int8)
    return result


def held(*shape: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
    return {"weight": weight, "scales": torch.rand(shape[0], generator=generator) / 128 + 1e-3}


F = nn.functional
AROUND = [
    ("clamped", lambda m, x: pair(F.conv2d(pair(x, 0.02, 120), fixed(m)).clamp(-0.5, 1.0), 0.02, 100), "conv2d", 4),
    (
        "relu_of_clamp",
        lambda m, x: pair(F.relu(F.conv2d(pair(x, 0.02, 120), fixed(m)).clamp(None, -1.0)), 0.02, 9),
        "conv2d",
        4,
    ),
    (
        "with_view",
        lambda m, x: pair(F.conv2d(pair(x, 0.02, 120), fixed(m)), 0.05, 99).view(x.shape[0], -1) + 1,
        "conv2d",
        4,
    ),
    (
        "spread_sum",
        lambda m, x: pair(pair(x, 0.02, 120) + pair(x.mean((2, 3), True), 0.0113, 110), 0.0317, 7),
        "add",
        4,
    ),
    (
        "spread_product",
        lambda m, x: pair(pair(x.mean((2, 3), True), 0.0113, 110) * pair(x, 0.02, 120), 0.0317, 7),
        "mul",
        4,
    ),
    (
        "spread_both",
        lambda m, x: pair(pair(x.mean(2, True), 0.0113, 110) * pair(x.mean(3, True), 0.02, 120), 0.0317, 7),
        "",
        4,
    ),
    ("hardswish", lambda m, x: pair(F.hardswish(pair(x, 0.02, 120)), 0.02, 40), "hardswish", 4),
    (
        "halves",
        lambda m, x: pair(F.conv2d(pair(torch.cat([x, x], 1), 0.02, 120).chunk(2, 1)[1], fixed(m)), 0.05, 99),
        "conv2d",
        4,
    ),
    (
        "parts",
        lambda m, x: pair(F.conv2d(torch.split(pair(torch.cat([x, x], 1), 0.02, 120), 8, 1)[1], fixed(m)), 0.05, 99),
        "conv2d",
        4,
    ),
    ("pool_of_same_numbers", lambda m, x: pair(F.avg_pool2d(pair(x, 0.02, 120), 3), 0.02, 120), "", 4),
    ("pool_of_other_numbers", lambda m, x: pair(F.avg_pool2d(pair(x, 0.02, 120), 3), 0.0113, 120), "", 4),
    ("padded", lambda m, x: pair(F.conv2d(F.pad(pair(x, 0.02, 120), [0, 1, 2, 0]), fixed(m)), 0.05, 99), "conv2d", 4),
    (
        "linear_layers",
        lambda m, x: pair(F.linear(pair(F.relu(F.linear(pair(x, 0.02, 120), fixed(m))), 0.1, 0), fixed(m)), 0.21, 99),
        "linear linear_relu",
        2,
    ),
    ("float_result", lambda m, x: F.conv2d(pair(x, 0.02, 120), fixed(m)), "", 4),
    ("two_readers", lambda m, x: (y := F.conv2d(pair(x, 0.02, 120), fixed(m)), pair(y, 0.05, 99)), "", 4),
    (
        "integer_result",
        lambda m, x: LIBRARY.quantize_per_tensor(F.conv2d(pair(x, 0.02, 120), fixed(m)), 0.05, 9, 0, 255, torch.uint8),
        "conv2d",
        4,
    ),
    (
        "sequence",
        lambda m, x: pair(F.conv1d(pair(x, 0.02, 120), fixed(m), padding=1), 0.05, 99).flatten(1),
        "conv1d",
        3,
    ),
    ("volume", lambda m, x: pair(F.conv3d(pair(x, 0.02, 120), fixed(m), padding=1), 0.05, 99).flatten(1), "conv3d", 5),
]


@needs_kernels
@pytest.mark.parametrize(
    ("function", "kernel", "rank"), [each[1:] for each in AROUND], ids=[each[0] for each in AROUND]
)
def test_what_stands_around_a_kernel(function: Any, kernel: str, rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, *[6] * (rank - 2))
    program, artifact = lowered(Function(function, **held(8, 8, *[3] * (rank - 2))), x)
    events = kernels(artifact, x)
    assert list(ran(events)) == kernel.split()
    for batch in (2, 1, 5):
        x = torch.randn(batch, *x.shape[1:])
        got, wanted = artifact(x), program(x)
        many = isinstance(wanted, tuple)
        for one, other in zip(got if many else [got], wanted if many else [wanted], strict=True):
            assert one.dtype == other.dtype and one.stride() == other.stride()
            # A step of the result, or of a sum behind it.
            step = 1.0 if one.dtype == torch.uint8 else steps(program, "dequantize_per_tensor")
            assert (one.double() - other.double()).abs().max() <= 1.001 * step
            assert ((one.double() - other.double()).abs() > 1e-4).double().mean() <= 0.02


@needs_kernels
@pytest.mark.parametrize(
    ("size", "sides", "stride"), [(8, (1, 1, 1, 1), 1), (8, (0, 1, 0, 1), 2), (9, (0, 1, 1, 0), 2)]
)
def test_zeros_around_a_depthwise_layer_become_its_padding(size: int, sides: tuple[int, ...], stride: int) -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        return pair(F.conv2d(F.pad(pair(x, 0.02, 120), sides), fixed(m), stride=stride, groups=8), 0.05, 99)

    torch.manual_seed(0)
    x = torch.randn(2, 8, size, size)
    program, artifact = lowered(Function(function, **held(8, 1, 3, 3)), x)
    events = kernels(artifact, x)
    # Where the result would have another size, the zeros stay apart.
    assert ran(events) == {"conv2d": 1} and ("aten::fill_" in events) == (size == 9)
    torch.testing.assert_close(artifact(x), program(x), rtol=0, atol=0.0501)


def run_at(m: Any, x: torch.Tensor, kind: str) -> torch.Tensor:
    limits = (0, 255, torch.uint8) if kind != "choose_qparams_symmetric" else (-128, 127, torch.int8)
    scale, point = getattr(LIBRARY, kind).tensor(x, *limits[:2], 1e-7, limits[2])
    integers = LIBRARY.quantize_per_tensor.tensor(x, scale, point, *limits)
    return F.linear(LIBRARY.dequantize_per_tensor.tensor(integers, scale, point, *limits), fixed(m))


def by_token(m: Any, x: torch.Tensor, kind: str) -> tuple[torch.Tensor, ...]:
    scales, points = getattr(LIBRARY, kind)(x, torch.int8)
    integers = LIBRARY.quantize_per_token(x, scales, points, -128, 127, torch.int8)
    floats = LIBRARY.dequantize_per_token(integers, scales, points, -128, 127, torch.int8, torch.float32)
    return scales, points, integers, floats


def by_group(m: Any, x: torch.Tensor) -> torch.Tensor:
    limits = (-8, 7, torch.int8, 4)
    integers = LIBRARY.quantize_per_channel_group(m.weight, m.scales, m.points, *limits)
    weight = LIBRARY.dequantize_per_channel_group(integers, m.scales, m.points, *limits, torch.float32)
    return F.linear(x, weight)


def by_channel(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    limits = (1, -128, 127, torch.int8)
    integers = LIBRARY.quantize_per_channel(x, m.scales, m.points, *limits)
    floats = LIBRARY.dequantize_per_channel(integers, m.scales, m.points, *limits)
    return integers, floats, LIBRARY.fake_quant_per_channel(x, m.scales, m.points, 1, -100, 100)


def signed(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    numbers, narrow = (0.02, 3, -128, 127, torch.int8), (0.02, 3, 0, 15, torch.uint8)
    other = LIBRARY.quantize_per_tensor(x, *narrow)
    return (
        LIBRARY.dequantize_per_tensor(LIBRARY.quantize_per_tensor(x, *numbers), *numbers),
        *(other, LIBRARY.dequantize_per_tensor(other, *narrow, out_dtype=torch.float64)),
        LIBRARY.dequantize_per_tensor(LIBRARY.quantize_per_tensor(x, *numbers), 0.5, -9, *numbers[2:]),
        LIBRARY.convert_element_type.no_fuse(x, torch.float16),
    )


def tensors(m: Any, x: torch.Tensor) -> torch.Tensor:
    limits = (m.low, m.high, torch.int8)
    integers = LIBRARY.quantize_per_tensor.tensor2(x, m.scale, m.point, *limits)
    result: torch.Tensor = LIBRARY.dequantize_per_tensor.tensor2(integers, m.scale, m.point, *limits)
    return result


def _numbers(**values: Any) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


PLAIN = [
    ("by_token", lambda m, x: by_token(m, x, "choose_qparams_per_token"), {}),
    ("by_token_asymmetric", lambda m, x: by_token(m, x, "choose_qparams_per_token_asymmetric"), {}),
    ("by_token_inside", lambda m, x: by_token(m, x, "_choose_qparams_per_token_asymmetric_impl"), {}),
    (
        "by_group",
        by_group,
        {
            "weight": torch.linspace(-1, 1, 48).view(6, 8),
            "scales": torch.rand(6, 2) / 9 + 0.01,
            "points": torch.zeros(6, 2),
        },
    ),
    ("by_channel", by_channel, {"scales": torch.rand(8) / 50 + 0.01, "points": torch.arange(-4, 4)}),
    ("signed", signed, {}),
    ("tensors", tensors, _numbers(scale=0.03, point=4, low=-100, high=90)),
    ("symmetric", lambda m, x: run_at(m, x, "choose_qparams_symmetric"), held(6, 8)),
]


@pytest.mark.parametrize(("function", "constants"), [each[1:] for each in PLAIN], ids=[each[0] for each in PLAIN])
def test_what_has_no_kernel_is_plain_arithmetic(function: Any, constants: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 8)
    program, artifact = lowered(Function(function, **constants), x)
    for given in (x, torch.randn(7, 8), torch.zeros(1, 8)):
        torch.testing.assert_close(artifact(given), program(given), rtol=1e-6, atol=1e-6)


def test_every_operator_has_a_form() -> None:
    names = [each for each in torch._C._dispatch_get_all_op_names() if each.startswith("quantized_decomposed::")]
    assert names and set(names) == set(ARITHMETIC)


@needs_kernels
def test_a_range_at_run_time_that_is_empty() -> None:
    program, artifact = lowered(Function(lambda m, x: run_at(m, x, "choose_qparams"), **held(6, 8)), torch.randn(3, 8))
    for x in (torch.zeros(2, 8), torch.full((2, 8), 3.0), -torch.rand(2, 8), torch.randn(2, 8)):
        torch.testing.assert_close(artifact(x), program(x), rtol=0, atol=0.06)


def test_a_layer_on_a_vector_has_no_kernel() -> None:
    program, artifact = lowered(Function(lambda m, x: run_at(m, x, "choose_qparams"), **held(6, 8)), torch.randn(8))
    x = torch.randn(8)
    torch.testing.assert_close(artifact(x), program(x), rtol=1e-5, atol=1e-5)
