"""Layers run on packed weights in memory: the same numbers, the same file, the same profile."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from burnish.backends.torchscript import TorchScriptArtifact, TorchScriptBackend
from burnish.backends.torchscript.kernels import pack_convolutions
from burnish.backends.torchscript.packed import runs_packed
from burnish.compiler.capture import capture
from burnish.compiler.numerics import drift, worst_drift
from burnish.compiler.pipeline import Pipeline
from burnish.compiler.program import Program

BACKEND = TorchScriptBackend()
BFLOAT16 = int(runs_packed() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
LINEAR, CONVOLUTION = "mkldnn::_linear_pointwise", "mkldnn::_convolution_pointwise"
needs_kernels = pytest.mark.skipif(not runs_packed(), reason="this processor or PyTorch has no such kernels")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.point(torch.nn.functional.hardtanh(self.depthwise(x), 0.0, 6.0)) * 2
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Net().eval(), (torch.randn(2, 3, 9, 9),))


@pytest.fixture
def artifact(program: Program) -> TorchScriptArtifact:
    return BACKEND.emit(program, {})


def operators(artifact: TorchScriptArtifact, *inputs: torch.Tensor) -> list[str]:
    """Return the operators that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        artifact(*inputs)
    return [event.name for event in profiler.events()]


def kernels(artifact: TorchScriptArtifact, *inputs: torch.Tensor) -> list[str]:
    """Return the packed layers that a call runs, behind a first one with these inputs."""
    artifact(*inputs)
    return [name for name in operators(artifact, *inputs) if name in (LINEAR, CONVOLUTION)]


@needs_kernels
def test_the_kernels_run(artifact: TorchScriptArtifact) -> None:
    assert kernels(artifact, torch.randn(2, 3, 9, 9)) == [CONVOLUTION] * 3 + [LINEAR]


def test_without_onednn_the_module_runs_as_it_is(artifact: TorchScriptArtifact, program: Program) -> None:
    x = torch.randn(2, 3, 9, 9)
    expected = program(x)
    for _ in range(2):
        with torch.backends.mkldnn.flags(enabled=False):
            assert kernels(artifact, x) == []
            assert drift(artifact(x), expected) <= 1e-6
        assert drift(artifact(x), expected) <= 1e-6


def test_autocast_still_works(artifact: TorchScriptArtifact) -> None:
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels(artifact, x) == []
        assert artifact(x).dtype == torch.bfloat16


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 17])
def test_any_batch(artifact: TorchScriptArtifact, program: Program, batch: int) -> None:
    x = torch.randn(batch, 3, 9, 9)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        assert drift(artifact(given), program(given)) <= 1e-6


def test_the_file_has_operators_of_aten_alone(artifact: TorchScriptArtifact, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 9, 9)
    before = artifact(x)
    artifact.save(tmp_path / "net.pt")
    plain = torch.jit.load(tmp_path / "net.pt")
    kinds = {node.kind().partition("::")[0] for node in plain.graph.nodes()}
    assert kinds == {"aten", "prim"}
    assert "mkldnn" not in str(plain.graph) and "mkldnn" not in plain.code
    assert torch.equal(plain(x), artifact.module(x))
    loaded = BACKEND.load(tmp_path / "net.pt", {})
    assert torch.equal(loaded(x), before)
    assert kernels(loaded, x) == kernels(artifact, x)
    loaded.save(tmp_path / "again.pt")
    assert torch.equal(torch.jit.load(tmp_path / "again.pt")(x), plain(x))


ACTIVATIONS = {"relu": [], "clamp": [0.0, 6.0], "gelu": [], "hardswish": [], "leaky_relu": [0.1], "sigmoid": []}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan(activation: str) -> None:
    program = Program.parse(
        f"""# burnish 1
constant @w: f32[4, 3, 3, 3]
constant @fc: f32[4, 4]
graph main(%x: f32[B, 3, 6, 6], %r: f32[B, 4, 4, 4]) {{
  %conv = burnish.conv_act(%x, @w, None, stride=[1, 1], padding=[0, 0], dilation=[1, 1], residual=%r,
   activation="{activation}", parameters={ACTIVATIONS[activation]})
  %out = burnish.linear_act(%conv, @fc, activation="{activation}", parameters={ACTIVATIONS[activation]})
  return %conv, %out
}}
""".replace(",\n   ", ", ")
    )
    artifact, x, r = BACKEND.emit(program, {}), torch.randn(2, 3, 6, 6), torch.randn(2, 4, 4, 4)
    x[0, 0, 0, 0], r[1, 2, 3, 3] = float("nan"), float("nan")
    if activation != "gelu":
        # PyTorch's own gelu of infinity is NaN or infinity, depending on the order in memory.
        r[0, 1, 2, 3] = float("inf")
    expected = program(x, r)
    for _ in range(3):
        actual = artifact(x, r)
        assert worst_drift(actual, expected) <= 1e-6
        for a, e in zip(actual, expected, strict=True):
            assert a.isnan().any() and torch.equal(a.isnan(), e.isnan())


def _functional(weight: torch.Tensor, **options: Any) -> nn.Module:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.weight, **options)

    return Layer()


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), (2, 8, 7, 7), 1),
    "depthwise with a multiplier": (nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), (2, 4, 7, 9), 1),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=(2, 1), padding=(2, 0)), (2, 3, 9, 9), 1),
    "even kernel": (nn.Conv2d(3, 4, (2, 4)), (2, 3, 9, 9), 1),
    "one channel": (nn.Conv2d(1, 1, 3), (2, 1, 9, 9), 1),
    "stored channels-last": (_functional(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)),
                             (2, 3, 9, 9), 1),
    "same padding": (nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 9, 9), 0),
    "a factor for each channel": (nn.Conv2d(3, 3, 1, groups=3), (2, 3, 9, 9), 0),
    "one picture without a batch": (nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (3, 9, 9), 0),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 9, 9), 0),
    "one dimension": (nn.Conv1d(3, 4, 3), (2, 3, 9), 0),
    "three dimensions": (nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5), 0),
    "double": (nn.Conv2d(3, 4, 3).double(), (2, 3, 9, 9), 0),
    "bfloat16": (nn.Conv2d(3, 4, 3).bfloat16(), (2, 3, 9, 9), BFLOAT16),
    "float16": (nn.Conv2d(3, 4, 3).half(), (2, 3, 9, 9), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_kinds_of_convolutions(name: str) -> None:
    model, shape, packed = CONVOLUTIONS[name]
    dtype = next(model.parameters()).dtype
    artifact = BACKEND.emit(capture(model, (torch.randn(shape, dtype=dtype),)), {})
    x = torch.randn(shape if name.startswith("one picture") else (3, *shape[1:]), dtype=dtype)
    for _ in range(3):
        assert drift(artifact(x), model(x).detach()) <= (1e-6 if dtype.itemsize > 2 else 1e-2)
    assert kernels(artifact, x) == [CONVOLUTION] * packed * runs_packed()


def resizable() -> tuple[nn.Module, TorchScriptArtifact]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    dims = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    return model, BACKEND.emit(capture(model, (torch.randn(2, 3, 8, 9),), (dims,)), {})


SIZES = {"a": (2, 3, 8, 9), "b": (2, 3, 9, 8), "A": (5, 3, 8, 9), "c": (1, 3, 30, 4), "0": (0, 3, 8, 9)}


@pytest.mark.parametrize(
    ("calls", "packed"),
    [
        # The batch counts for nothing; each shape is looked at once.
        ("0aaAAaA", "  . ..."),
        # Others in a row become those that weights are packed for: two, then four.
        ("aabbbbaaaaaa", " .  ..    .."),
        ("abababab", "  . . . "),
        ("abcbcbcaA", "       . "),
    ],
)
def test_convolutions_are_packed_for_one_size(calls: str, packed: str) -> None:
    model, artifact = resizable()
    found = ""
    for each in calls:
        x = torch.randn(SIZES[each])
        ran = operators(artifact, x)
        assert LINEAR in ran or not runs_packed()
        found += "." if CONVOLUTION in ran else " "
        with torch.no_grad():
            assert drift(artifact.module(x), model(x)) <= 1e-6
    assert found == (packed if runs_packed() else " " * len(calls))


def test_results_at_all_sizes() -> None:
    model, artifact = resizable()
    for each in "0aAbbbbaaaacAb0":
        x = torch.randn(SIZES[each])
        with torch.no_grad():
            assert drift(artifact(x), model(x)) <= 1e-6


def test_threads_that_call_first_at_a_time() -> None:
    model, artifact = resizable()
    inputs = [torch.randn(SIZES[each]) for each in "aAbc" * 16]
    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        for actual, x in zip(pool.map(artifact, inputs), inputs, strict=True):
            assert drift(actual, model(x)) <= 1e-6


@needs_kernels
def test_more_shapes_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.backends.torchscript.packed._REMEMBERED", 2)
    model = nn.Conv2d(3, 4, 3).eval()
    artifact = BACKEND.emit(capture(model, (torch.randn(2, 3, 8, 9),), ({0: torch.export.Dim("b")},)), {})
    for batch in (1, 2, 3, 4, 1):
        assert kernels(artifact, torch.randn(batch, 3, 8, 9)) == [CONVOLUTION]


@needs_kernels
def test_two_threads_that_call_first_with_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    both, packed = threading.Barrier(2), list[Sequence[int]]()

    def pack(graph: Any, sizes: Sequence[Sequence[int]]) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)
        packed.append(sizes[0][2:])
        pack_convolutions(graph, sizes)

    monkeypatch.setattr("burnish.backends.torchscript.packed.pack_convolutions", pack)
    dims = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    model = nn.Conv2d(3, 4, 3).eval().requires_grad_(False)
    artifact = BACKEND.emit(capture(model, (torch.randn(2, 3, 8, 9),), (dims,)), {})
    # Both threads are to have the same module of packed layers.
    artifact(torch.empty(0, 3, 8, 9))
    inputs = [torch.randn(2, 3, 8, 9), torch.randn(2, 3, 30, 7)]
    with ThreadPoolExecutor(2) as threads:
        for x, result in zip(inputs, threads.map(artifact, inputs), strict=True):
            assert drift(result, model(x)) <= 1e-6
    # The one that comes second finds weights packed: one call does not change that.
    assert len(packed) == 1
    for x in (*inputs, *inputs):
        latest = packed[-1]
        assert (CONVOLUTION in operators(artifact, x)) == (list(x.shape[2:]) == list(latest))


class Bfloat16(nn.Module):
    """Layers with each activation behind them, in bfloat16."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc, self.activation = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.conv(x))
        return self.activation(self.fc(y.permute(0, 2, 3, 1)))


SMOOTH = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}
OTHER = {"relu": nn.ReLU(), "hardswish": nn.Hardswish(), "leaky_relu": nn.LeakyReLU()}


@pytest.mark.parametrize("passes", ["canonicalize", "canonicalize,fuse"])
@pytest.mark.parametrize("name", [*SMOOTH, *OTHER])
def test_activations_in_bfloat16(name: str, passes: str) -> None:
    torch.manual_seed(0)
    model = Bfloat16({**SMOOTH, **OTHER}[name]).bfloat16().eval().requires_grad_(False)
    # Sums that do not cancel, so that their rounding is all there is.
    model.fc.weight.abs_()
    x = torch.randn(2, 3, 9, 9, dtype=torch.bfloat16) * 3
    artifact = BACKEND.emit(Pipeline.parse(passes).run(capture(model, (x,))), {})
    packed = bool(BFLOAT16)
    assert kernels(artifact, x) == [CONVOLUTION, LINEAR] * packed
    activation = f"aten::{name.removesuffix('_tanh')}"
    assert any(each.rstrip("_") == activation for each in operators(artifact, x)) == (name in OTHER or not packed)
    exact = model.float()(x.float())
    assert drift(artifact(x).float(), exact) <= 1e-2
    x[0, 0, 0, 0] = float("nan")
    for _ in range(2):
        assert torch.equal(artifact(x).isnan(), model(x.float()).isnan())


class Learning(nn.Module):
    """A weight that each call changes, one that it computes, and one that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(4, 4)
        self.register_buffer("changing", torch.eye(4))
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.linear(self.fixed(x), self.changing)
        y = nn.functional.linear(y, self.changing * self.factor * x.mean())
        self.changing.add_(x.mean())
        return y


def test_weights_that_change_are_not_packed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Learning(), torch.rand(3, 4)
    artifact = BACKEND.emit(capture(model, (x,)), {})
    for _ in range(4):
        assert drift(artifact(x), model(x).detach()) <= 1e-6
    assert kernels(artifact, x) == [LINEAR] * runs_packed()
    for _ in range(2):
        model(x)
    artifact.save(tmp_path / "model.pt")
    assert drift(BACKEND.load(tmp_path / "model.pt", {})(x), model(x).detach()) <= 1e-6
    first = artifact(x)
    artifact.reset()
    model.changing.copy_(torch.eye(4))
    assert drift(artifact(x), model(x).detach()) <= 1e-6
    assert drift(first, artifact(x)) > 1e-3


def test_a_copy_has_its_own_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Learning(), torch.rand(3, 4)
    BACKEND.emit(capture(model, (x,)), {}).save(tmp_path / "model.pt")
    artifact = BACKEND.load(tmp_path / "model.pt", {})
    for _ in range(2):
        artifact(x)
    other = copy.deepcopy(artifact)
    expected = artifact(x)
    for _ in range(3):
        artifact(x)
    assert drift(other(x), expected) <= 1e-6
    assert drift(other(x), expected) > 1e-3


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def when_positive(x: torch.Tensor) -> torch.Tensor:
            return self.one(x).relu()

        def otherwise(x: torch.Tensor) -> torch.Tensor:
            return self.two(x)[:, :1].relu()

        return torch.cond(x.sum() > 0, when_positive, otherwise, (x,)).view(x.shape[0], 16)


def test_layers_in_branches() -> None:
    model = Branches().eval().requires_grad_(False)
    x = torch.rand(2, 1, 4, 4)
    artifact = BACKEND.emit(capture(model, (x,)), {})
    for given, packed in ((x, [LINEAR]), (-x, [])):
        assert drift(artifact(given), model(given)) <= 1e-6
        assert kernels(artifact, given) == packed * runs_packed()


@needs_kernels
def test_the_profile_maps_kernels_to_modules(artifact: TorchScriptArtifact, tmp_path: Path) -> None:
    rows = {row.module: row for row in artifact.profile() if row.operator.startswith("mkldnn::")}
    assert set(rows) == {"stem", "depthwise", "point", "fc"}
    assert rows["fc"].operator == LINEAR and rows["stem"].operator == CONVOLUTION
    assert all(row.flops > 0 for row in rows.values())
    artifact.save(tmp_path / "net.pt")
    loaded = BACKEND.load(tmp_path / "net.pt", {})
    assert {LINEAR, CONVOLUTION} <= {row.operator for row in loaded.profile((torch.randn(2, 3, 9, 9),))}
