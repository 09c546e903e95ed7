"""Engines, built and run by a fake TensorRT in the form of 10.x and of 11, on GPUs that are the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish import BackendError, InputError, OptionError
from burnish.backends.tensorrt import BundleArtifact, TensorRTArtifact
from tests.conftest import Gpus
from tests.fake_tensorrt import NEW, OLD

RELEASES = pytest.mark.parametrize("release", [OLD, NEW])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.conv(x))
        return {"features": features, "logits": self.head(features.mean((2, 3)))}


class Chosen(nn.Module):
    """How many rows come out depends on the data."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nonzero(x > 0), x + 1


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(size))


def engine(model: nn.Module, x: torch.Tensor, options: str = "", passes: str = "default") -> TensorRTArtifact:
    backend = f"tensorrt{{{options}}}" if options else "tensorrt"
    compiled = burnish.compile(model.eval(), passes, inputs=(x,), backend=backend, progress=False)
    assert isinstance(compiled.artifact, TensorRTArtifact)
    return compiled.artifact


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@RELEASES
def test_build_call_save_load(gpus: Gpus, release: str, tmp_path: Path) -> None:
    gpus.install(release)
    model = Net().eval()
    compiled = burnish.compile(model, inputs=(batch(4),), backend='tensorrt{profiles=["B=1:4:8"]}', progress=False)
    compiled.save(tmp_path / "net.engine")
    loaded = burnish.load(tmp_path / "net.engine")
    assert isinstance(loaded, TensorRTArtifact)
    for size in (1, 4, 8):
        close(compiled(batch(size)), model(batch(size)))
        close(loaded(x=batch(size)), model(batch(size)))
    assert gpus.tensorrt.parts.runs[-1] == 1000
    built = gpus.tensorrt.parts.builds
    assert [each["profiles"] for each in built] == [{"x": [[1, 3, 8, 8], [4, 3, 8, 8], [8, 3, 8, 8]]}]
    # float32 is float32, and no precision is asked of the builder.
    assert built[0]["flags"] == set() and built[0]["level"] == 3 and built[0]["pools"] == {}
    assert loaded.node_count() == compiled.artifact.node_count() > 0
    assert any(release in note and "Fake GPU" in note and "B=1:4:8" in note for note in compiled.report.notes)


def test_options_reach_the_builder(gpus: Gpus) -> None:
    options = "optimization_level=5,workspace=64,refittable=true,version_compatible=true"
    engine(Net(), batch(2), options)
    (built,) = gpus.tensorrt.parts.builds
    assert built["flags"] == {"REFIT", "VERSION_COMPATIBLE"}
    assert built["level"] == 5 and built["pools"] == {"WORKSPACE": 64 << 20}


def test_profiles_default_to_the_samples(gpus: Gpus) -> None:
    made = engine(Net(), batch(4))
    assert made.file.profiles == ("B=1:4:4",)
    close(made(batch(1)), Net().eval()(batch(1)))
    with pytest.raises(
        InputError, match=r"input 'x' has size 5 in dimension 0, B, and the engine takes 1 to 4 .*profiles"
    ):
        made(batch(5))


def test_no_rows_run_nothing(gpus: Gpus) -> None:
    made = engine(Net(), batch(2))
    before = len(gpus.tensorrt.parts.runs)
    found = made(torch.empty(0, 3, 8, 8))
    assert found["features"].shape == (0, 16, 8, 8) and found["logits"].shape == (0, 5)
    assert len(gpus.tensorrt.parts.runs) == before


def test_a_mean_over_no_rows_is_refused(gpus: Gpus) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(0)

    with pytest.raises(InputError, match="has size 0 in dimension 0"):
        engine(Mean(), torch.randn(2, 4))(torch.empty(0, 4))


def test_inputs_are_made_contiguous(gpus: Gpus) -> None:
    made, x = engine(Net(), batch(4)), batch(4)
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    close(made(strided), Net().eval()(x))


@RELEASES
def test_sizes_that_depend_on_data(gpus: Gpus, release: str) -> None:
    gpus.install(release)
    x = torch.randn(4, 6)
    made = engine(Chosen(), x)
    for each in (x, -torch.ones(3, 6), torch.ones(4, 6)):
        rows, moved = made(each)
        assert rows.tolist() == torch.nonzero(each > 0).tolist() and rows.shape[1] == 2
        close(moved, each + 1)


def test_memory_that_cannot_be_had(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(Chosen(), torch.randn(4, 6))
    real = torch.empty

    def empty(*shape: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("dtype") is torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*shape, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(BackendError, match="CUDA out of memory"):
        made(torch.ones(4, 6))


def test_state_is_kept_and_put_back(gpus: Gpus, tmp_path: Path) -> None:
    x = torch.ones(2)
    made = engine(Counting(), x)
    assert [made(x).tolist() for _ in range(2)] == [[1, 1], [2, 2]]
    made.benchmark(seconds=0.01)
    made.save(tmp_path / "net.engine")
    loaded = burnish.load(tmp_path / "net.engine")
    assert isinstance(loaded, TensorRTArtifact)
    assert loaded(x).tolist() == made(x).tolist() == [3, 3]
    made.reset()
    assert made(x).tolist() == [1, 1]
    made.save(tmp_path / "net.trtbundle")
    bundle = burnish.load(tmp_path / "net.trtbundle")
    assert isinstance(bundle, BundleArtifact) and bundle(x).tolist() == [1, 1]


def test_benchmark_and_profile(gpus: Gpus) -> None:
    made = engine(Net(), batch(4))
    assert made.benchmark(seconds=0.01).calls > 0
    waits = len(gpus.waits)
    profile = made.profile()
    assert len(gpus.waits) > waits
    # The fake says half a millisecond a layer.
    assert {row.seconds for row in profile} == {5e-4}
    conv = next(row for row in profile if row.module == "conv")
    assert conv.operator == "CaskConvolution" and conv.flops == 4 * 8 * 8 * 16 * (2 * 27 + 2)  # bias, relu
    assert any(row.module == "head" for row in profile)
    with pytest.raises(InputError, match="pass inputs"):
        TensorRTArtifact(made.file).benchmark()


@RELEASES
def test_which_pairs_fused(gpus: Gpus, release: str) -> None:
    gpus.install(release)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(2))).eval()
    x = torch.randn(2, 16, 8, 8)
    compiled = burnish.compile(
        model, "default,quantize", inputs=(x,), calibration=[x], backend="tensorrt{dtype=int8}", progress=False
    )
    assert isinstance(compiled.artifact, TensorRTArtifact)
    data = compiled.artifact.inspection.data()
    assert data["pairs"] > 0 and data["pairs_alone"] == [] and len(data["int8_layers"]) == 2
    assert data["precisions"]["int8"] == 2
    assert "2 of 2 convolutions and matrix products compute in int8" in compiled.report.notes
    assert f"{data['pairs']} of {data['pairs']} quantizes and dequantizes fused" in compiled.report.notes


@RELEASES
def test_errors_of_the_parser_name_node_module_and_line(gpus: Gpus, release: str) -> None:
    gpus.install(release)
    gpus.tensorrt.parts.unsupported.add("Conv")
    with pytest.raises(
        BackendError, match=r"cannot parse relu\.Conv \(Conv\) from .*conv \(.*test_tensorrt\.py:\d+\): No imp"
    ):
        engine(Net(), batch(2))


def test_errors_of_the_builder_name_what_they_are_about(gpus: Gpus) -> None:
    gpus.tensorrt.parts.refusal = "Could not find any implementation for node {ForeignNode[head...]} and head"
    with pytest.raises(
        BackendError, match=r"cannot build the engine: Could not .*; head \(Gemm\) from head \(.*\.py:\d+"
    ):
        engine(Net(), batch(2))


def test_what_is_known_to_be_refused_is_refused_before_any_build(gpus: Gpus) -> None:
    with pytest.raises(BackendError, match=r"tensorrt-10\.13 cannot take .*float64.*model\.float\(\)"):
        engine(nn.Linear(3, 4).double(), torch.randn(2, 3, dtype=torch.float64))
    assert gpus.tensorrt.parts.builds == []


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("fp16", "precision{dtype=fp16}"), ("bf16", "bf16"), ("int8", "quantize")]
)
def test_an_element_type_that_the_network_does_not_carry(gpus: Gpus, dtype: str, wanted: str) -> None:
    with pytest.raises(BackendError, match=f"dtype={dtype} was asked for, and the network carries none") as raised:
        engine(Net(), batch(2), f"dtype={dtype}")
    assert wanted in str(raised.value)
    assert gpus.tensorrt.parts.builds == []


def test_half_precision_is_what_the_network_says(gpus: Gpus) -> None:
    made = engine(Net(), batch(2), "dtype=fp16", "default,precision{dtype=fp16}")
    found = made(batch(2))["logits"]
    torch.testing.assert_close(found.float(), Net().eval()(batch(2))["logits"], rtol=1e-2, atol=1e-2)


def test_timings_are_kept(gpus: Gpus, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    engine(Net(), batch(2), f'timing_cache="{cache}"')
    first = cache.read_bytes()
    made = engine(Net(), batch(2), f'timing_cache="{cache}"')
    assert cache.read_bytes().startswith(first) and len(cache.read_bytes()) > len(first)
    assert any(f"{len(first)} bytes of earlier builds" in note for note in made.notes())
    for spoiled in (b"garbage", b"timings of another release;"):
        cache.write_bytes(spoiled)
        made = engine(Net(), batch(2), f'timing_cache="{cache}"')
        assert any("it is replaced" in note for note in made.notes())
        assert cache.read_bytes() == first
    assert [each.name for each in tmp_path.iterdir()] == ["timings"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("precision=fp16", "no option 'precision'"),
        ('profiles=["B"]', "option 'profiles' of backend 'tensorrt': profile 'B' is no range"),
        ('profiles=["B=8:4:2"]', "must not fall"),
        ('profiles=["B=0:4:8"]', "begin at 1 or more"),
        ('profiles=["C=1:4:8"]', "no dynamic size 'C'; there are B"),
        ('profiles=["B=4:4:8"]', "the example inputs have B=2, which B=4:4:8 does not take"),
        ('profiles=["B=1"]', "the example inputs have B=2, which B=1:1:1 does not take"),
        ("optimization_level=6", "'optimization_level' of backend 'tensorrt' must be from 0 to 5, not 6"),
        ("workspace=-1", "'workspace'"),
        ("dtype=fp64", "one of fp16, bf16, int8"),
        ("refittable=1", "must be of type bool"),
        ('timing_cache="no/such/folder/file"', "a file in a folder that exists"),
    ],
)
def test_options_that_cannot_be(gpus: Gpus, options: str, message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        engine(Net(), batch(2), options)


@pytest.mark.parametrize("release", ["10.9.0", "9.3.0", "11.99.0"])
def test_releases(gpus: Gpus, release: str) -> None:
    gpus.install(release)
    if release.startswith("11"):
        engine(Net(), batch(2))  # newer than the table: taken for the newest that it has
        return
    with pytest.warns(UserWarning, match=f"version {release} is too old: 10.12 or later is needed"):
        compiled = burnish.compile(Net().eval(), inputs=(batch(2),), backend="tensorrt", progress=False)
    assert isinstance(compiled.artifact, BundleArtifact)


@pytest.mark.filterwarnings("ignore:no engine was built")
def test_without_a_gpu(gpus: Gpus, tmp_path: Path) -> None:
    gpus.names.clear()
    compiled = burnish.compile(Net().eval(), inputs=(batch(2),), backend="tensorrt", progress=False)
    close(compiled(batch(2)), Net().eval()(batch(2)))
    with pytest.raises(BackendError, match=r"no engine was built \(no GPU that PyTorch sees\): save a \.trtbundle"):
        compiled.save(tmp_path / "net.engine")
    for what in (compiled.benchmark, compiled.profile):
        with pytest.raises(BackendError, match="no GPU that PyTorch sees"):
            what()
    assert list(tmp_path.iterdir()) == []


def test_two_files_that_are_not_engines(gpus: Gpus, tmp_path: Path) -> None:
    compiled = burnish.compile(Net().eval(), inputs=(batch(2),), backend="tensorrt", progress=False)
    with pytest.raises(OptionError, match=r"ends in \.engine or \.trtbundle"):
        compiled.save(tmp_path / "net.onnx")
    compiled.save(tmp_path / "net.engine")
    with pytest.raises(OptionError, match="no option 'workspace' \\(there are host_code\\)"):
        burnish.load(tmp_path / "net.engine", workspace=3)
    loaded = burnish.load(tmp_path / "net.engine")
    assert isinstance(loaded, TensorRTArtifact)
    with pytest.raises(BackendError, match="a loaded engine has no graph"):
        loaded.save(tmp_path / "net.trtbundle")
