"""Models on which the lowering to ONNX, or ONNX Runtime itself, once went wrong; found by benchmarks/coverage.py."""

import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import burnish
from burnish.backends.onnx import OnnxArtifact
from burnish.compiler.numerics import drift


class PaddedMaxPool(nn.Module):
    """Zeros around negative numbers: a pool that pads with minus infinity instead gives other results."""

    def forward(self, x):
        return nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=0.0), 3, 2)


class Cells(nn.Module):
    """Composite operators whose decompositions write in place."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.norm = nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.RMSNorm(4)

    def forward(self, x):
        hidden, cell = self.lstm(x)
        return self.norm(self.gru(hidden, cell))


class BranchThatDoesNothing(nn.Module):
    """The passes drop the copies: a branch returns its input, the other one value twice."""

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: (v.clone(), v + 1), lambda v: ((y := v * 2), y.clone()), (x,))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(PaddedMaxPool(), (2, 16, 16)), (Cells(), (4,)), (nn.AdaptiveAvgPool1d(1), (3, 8)), (nn.RMSNorm(8), (8,))],
)
@torch.no_grad()
def test_onnx_agrees_with_eager(model, shape):
    x = torch.randn(2, *shape) - 1
    compiled = burnish.compile(model, inputs=(x,), backend="onnx", verify=0)
    wide = torch.randn(3, *shape) - 1
    assert drift(compiled(wide), model(wide)) <= 1e-5


@torch.no_grad()
def test_the_file_of_a_padded_pool_is_right_in_plain_onnx_runtime(tmp_path):
    model, x = PaddedMaxPool(), torch.randn(2, 2, 16, 16) - 1
    burnish.compile(model, inputs=(x,), backend="onnx").save(tmp_path / "pool.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pool.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert drift(torch.from_numpy(actual), model(x)) <= 1e-5


@torch.no_grad()
def test_branches_may_return_an_input_or_a_value_twice():
    model, x = BranchThatDoesNothing(), torch.rand(2, 4) + 1
    compiled = burnish.compile(model, inputs=(x,), backend="onnx")
    for given in (x, -x):
        for actual, expected in zip(compiled(given), model(given), strict=True):
            assert torch.equal(actual, expected)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 20, 3, padding=1, bias=False), nn.Conv2d(20, 20, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return (x + torch.relu(self.second(torch.tanh(x)))).mean((2, 3))


def test_batches_stay_dynamic_when_pairs_stand_before_convolutions() -> None:
    """Typing a convolution anew once fixed the batch below 16, where PyTorch would pick another kernel."""
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(16, 3, 9, 9)
    passes = "canonicalize,fuse,quantize{preset=fast}"
    compiled = burnish.compile(model, passes, inputs=(x[:2],), calibration=[x], verify=0)
    assert drift(compiled(x), model(x).detach()) < 0.05
    assert drift(compiled.program(x), model(x).detach()) < 0.05


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize(
    "function",
    [
        nn.functional.hardswish,
        nn.functional.hardsigmoid,
        nn.functional.leaky_relu,
        nn.functional.mish,
        nn.functional.softplus,
        lambda x: nn.functional.softplus(x, beta=2.5, threshold=1.5),
        lambda x: nn.functional.gelu(x, approximate="tanh"),
        lambda x: x * (x + 3).clamp(0, 6) / 6,
        lambda x: torch.log(1 + torch.exp(x)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_in_both_precisions(function, dialect: str, dtype: torch.dtype) -> None:
    """ONNX Runtime has kernels of most of them for float32 only."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 7)

        def forward(self, x):
            return function(x), function(self.layer(x))

    model = Model().to(dtype).eval()
    x = torch.cat([torch.randn(3, 5) * 3, torch.tensor([[-90.0, -3.0, 0.0, 3.0, 60.0]])]).to(dtype)
    compiled = burnish.compile(model, inputs=(x[:2],), backend=f"onnx{{dialect={dialect}}}")
    with torch.no_grad():
        expected = model(x)
    for actual, wanted in zip(compiled(x), expected, strict=True):
        assert actual.dtype == dtype
        assert drift(actual, wanted) <= (1e-14 if dtype == torch.float64 else 1e-6)


_TRANSPOSED = """
import torch, burnish
from torch import nn

class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x).transpose(0, 1))

x = torch.randn(2, 6, 8)
model = Turned().eval()
compiled = burnish.compile(model, "default,precision{dtype=fp16}", (x,), progress=False)
assert (compiled(x) - model(x)).abs().max() < 1e-2
"""


def test_a_float16_matmul_behind_a_transpose_does_not_crash_onnx_runtime() -> None:
    # In a process of its own: it once ended by a signal (microsoft/onnxruntime#28392).
    done = subprocess.run([sys.executable, "-c", _TRANSPOSED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class _Biased(nn.Module):
    """Attention with a table of biases, as Swin has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(16, 48), nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, self.table)
        return attended.transpose(1, 2).reshape(x.shape[0], 5, 16)


@pytest.mark.parametrize("dialect", ["openvino", "tensorrt"])
def test_a_constant_bias_of_attention_in_bfloat16(dialect: str) -> None:
    backend = f"onnx{{dialect={dialect}}}"
    made = burnish.compile(
        _Biased().eval(), "default,precision{dtype=bf16}", (torch.randn(2, 5, 16),), backend=backend, verify=0,
        progress=False,
    )  # fmt: skip
    assert isinstance(made.artifact, OnnxArtifact)
    assert any(each.data_type == onnx.TensorProto.BFLOAT16 for each in made.artifact.model.graph.graph.initializer)
