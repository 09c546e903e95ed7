"""The backend on a real TensorRT and a GPU: the same claims as on the fake one, and what only hardware can show."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish import BackendError, InputError
from burnish.backends.stages import StagedArtifact
from burnish.backends.tensorrt import TensorRTArtifact, library
from burnish.tools import cli
from tests.backends.test_tensorrt import Counting
from tests.passes.test_exits import Pictures
from tests.passes.test_partition import Net as TwoInputs
from tests.passes.test_partition import inputs

pytestmark = [
    pytest.mark.skipif(bool(library.reason()), reason=f"needs TensorRT and a GPU: {library.reason()}"),
    pytest.mark.filterwarnings("ignore:the thresholds of exits are not calibrated"),
    pytest.mark.slow,
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x) + x)
        return self.head(x.mean((2, 3)))


class Rows(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nonzero(x > 0), x * 2


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, 16, 16, 16, generator=torch.Generator().manual_seed(size))


def engine(model: nn.Module, x: Any, options: str = "", passes: str = "default", **more: Any) -> TensorRTArtifact:
    backend = f"tensorrt{{{options}}}" if options else "tensorrt"
    inputs = x if isinstance(x, tuple) else (x,)
    compiled = burnish.compile(model.eval(), passes, inputs=inputs, backend=backend, progress=False, **more)
    assert isinstance(compiled.artifact, TensorRTArtifact)
    return compiled.artifact


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    assert found.is_cuda
    found, expected = found.cpu().double(), expected.detach().double()
    worst = float((found - expected).abs().max() / expected.abs().max())
    assert worst <= tolerance


def test_float32_is_float32(tmp_path: Path) -> None:
    made = engine(Net(), batch(4), 'profiles=["B=1:4:16"]')
    made.save(tmp_path / "net.engine")
    loaded = burnish.load(tmp_path / "net.engine")
    assert isinstance(loaded, TensorRTArtifact)
    for size in (1, 4, 16):
        for each in (made, loaded):
            # TF32 would be off by more than this.
            close(each(batch(size)), Net().eval()(batch(size)), 1e-5)
            close(each(batch(size).cuda()), Net().eval()(batch(size)), 1e-5)
    with pytest.raises(InputError, match="the engine takes 1 to 16"):
        made(batch(17))
    assert made(torch.empty(0, 16, 16, 16)).shape == (0, 10)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 1e-2), ("bf16", 5e-2)])
def test_half_precision_is_what_the_network_says(dtype: str, tolerance: float) -> None:
    made = engine(Net(), batch(4), f"dtype={dtype}", f"default,precision{{dtype={dtype}}}", verify=0)
    close(made(batch(4)), Net().eval()(batch(4)), tolerance)
    assert made.inspection.data()["precisions"].get(dtype, 0) >= 2


def test_integers_are_integers() -> None:
    made = engine(Net(), batch(8), "dtype=int8", "default,quantize", calibration=[batch(8)])
    close(made(batch(8)), Net().eval()(batch(8)), 1e-1)
    data = made.inspection.data()
    assert len(data["int8_layers"]) >= 2, made.notes()
    assert data["pairs"] > len(data["pairs_alone"])


def test_sizes_that_depend_on_data() -> None:
    made = engine(Rows(), torch.randn(8, 6))
    for x in (torch.randn(8, 6), -torch.ones(3, 6), torch.ones(8, 6)):
        rows, double = made(x)
        assert rows.tolist() == torch.nonzero(x > 0).tolist()
        close(double, x * 2, 0)


def test_the_callers_stream() -> None:
    made, x = engine(Net(), batch(4)), batch(4).cuda()
    expected = Net().eval()(batch(4))
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            # Read before the wait is over, it would be another value.
            late = x * 1.0
            found.append(made(late))
    for stream, each in zip(streams, found, strict=True):
        stream.synchronize()
        close(each, expected)


def test_memory_that_is_not_aligned() -> None:
    made, x = engine(Net(), batch(4)), batch(4)
    spare = torch.empty(x.numel() + 1, device="cuda")
    shifted = spare[1:].view(x.shape).copy_(x)
    assert shifted.data_ptr() % 256
    close(made(shifted), Net().eval()(x))
    close(made(x.cuda().transpose(2, 3).contiguous().transpose(2, 3)), Net().eval()(x))


def test_state() -> None:
    made, x = engine(Counting(), torch.ones(2)), torch.ones(2)
    assert [made(x).tolist() for _ in range(2)] == [[1, 1], [2, 2]]
    made.reset()
    assert made(x).tolist() == [1, 1]


def test_benchmark_profile_and_notes() -> None:
    made = engine(Net(), batch(4))
    assert 0 < made.benchmark(seconds=0.2).median < 1
    profile = made.profile()
    assert profile.seconds > 0
    assert {"conv1", "conv2"} <= {row.module for row in profile} or any("conv" in row.node for row in profile)
    assert made.node_count() > 0 and any("layers" in note for note in made.notes())


@pytest.mark.parametrize("exits", [1, 2])
def test_exits(exits: int) -> None:
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    for threshold in (0.0, 0.25, 1.0):
        passes = f"default,insert-exits{{exits={exits},index=true,thresholds=[{threshold}]}}"
        whole, made = (
            burnish.compile(Pictures().eval(), passes, inputs=(x,), backend=backend, progress=False)
            for backend in ("onnx", "tensorrt")
        )
        for count in (1, 2, 8):
            logits, index = whole(x[:count])
            found, where = made(x[:count])
            assert where.tolist() == index.tolist()
            close(found, logits)


def test_a_stage_for_every_gpu(tmp_path: Path) -> None:
    model = TwoInputs().eval()
    made = burnish.compile(model, "default,partition{stages=2}", inputs=inputs(4), backend="tensorrt", progress=False)
    assert isinstance(made.artifact, StagedArtifact)
    places = {part.file.device for part in made.artifact.parts if isinstance(part, TensorRTArtifact)}
    assert len(places) == min(2, torch.cuda.device_count())
    made.save(tmp_path / "net")
    expected = model(*inputs(4))
    for each in (made, burnish.load(tmp_path / "net")):
        found = each(*inputs(4))  # type: ignore[operator]
        torch.testing.assert_close(
            torch.utils._pytree.tree_map(torch.Tensor.cpu, found), expected, rtol=1e-3, atol=1e-4
        )


def test_what_the_parser_refuses_is_named() -> None:
    from burnish.backends.tensorrt.building import build

    made = engine(Net(), batch(2))
    assert made._bundle is not None
    graph = copy.deepcopy(made._bundle.model.graph)
    graph.graph.node[0].op_type = "NoSuchOperator"
    bundle = replace(made._bundle, model=replace(made._bundle.model, graph=graph))
    with pytest.raises(BackendError, match=r"cannot parse .*\(NoSuchOperator\) from .*test_tensorrt_real\.py:\d+"):
        build(bundle, 0)


@pytest.mark.parametrize(
    "options", ["refittable=true", "version_compatible=true", "optimization_level=0,workspace=256"]
)
def test_options(options: str, tmp_path: Path) -> None:
    made = engine(Net(), batch(2), options)
    made.save(tmp_path / "net.engine")
    loaded = burnish.load(tmp_path / "net.engine", host_code=True)
    assert isinstance(loaded, TensorRTArtifact)
    close(loaded(batch(2)), Net().eval()(batch(2)))


def test_timings_are_kept(tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    engine(Net(), batch(2), f'timing_cache="{cache}"')
    assert cache.stat().st_size > 0
    assert any("of earlier builds" in each for each in engine(Net(), batch(2), f'timing_cache="{cache}"').notes())
    cache.write_bytes(b"garbage")
    assert any("it is replaced" in each for each in engine(Net(), batch(2), f'timing_cache="{cache}"').notes())


def test_build_trt(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    engine(Net(), batch(4)).save(tmp_path / "net.trtbundle")
    result = CliRunner().invoke(cli.app, ["build-trt", str(tmp_path / "net.trtbundle"), "--seconds", "0.2"])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "net.engine.json").read_text())
    assert data["verified"] is True and data["error"] <= data["tolerance"] and data["latency"]["median"] > 0
    assert data["gpus"] == [torch.cuda.get_device_name(0)]
