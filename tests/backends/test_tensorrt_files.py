"""Bundles and engine files: what they hold, where they are refused, and what damage does."""

from __future__ import annotations

import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import burnish
from benchmarks.fuzz import damaged
from burnish import BackendError, FileFormatError, InputError, MissingDependencyError
from burnish.backends.onnx import files
from burnish.backends.tensorrt import BundleArtifact, TensorRTArtifact, device
from tests.conftest import Gpus
from tests.fake_tensorrt import NEW

pytestmark = pytest.mark.filterwarnings("ignore:no engine was built")


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 300)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"y": self.layer(x), "rows": x.shape[0]}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patched:
        patched.setattr(device, "count", lambda: 0)
        compiled = burnish.compile(small(), inputs=(torch.randn(2, 4),), backend="tensorrt", progress=False)
        compiled.save(tmp_path / "net.trtbundle")
    return tmp_path / "net.trtbundle"


@pytest.fixture
def engine(gpus: Gpus, tmp_path: Path) -> Path:
    compiled = burnish.compile(small(), inputs=(torch.randn(2, 4),), backend="tensorrt", progress=False)
    compiled.save(tmp_path / "net.engine")
    return tmp_path / "net.engine"


def rewrite(path: Path, change: Any) -> None:
    """Write an archive again with other metadata."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(parts["metadata.json"])
    change(data)
    parts["metadata.json"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def test_what_a_bundle_holds(bundle: Path, tmp_path: Path) -> None:
    loaded = burnish.load(bundle)
    assert isinstance(loaded, BundleArtifact)
    held, x = loaded.bundle, torch.randn(5, 4)
    torch.testing.assert_close(loaded(x), small()(x), rtol=1e-4, atol=1e-5)
    assert held.drift(small()(held.samples["input"])) < 1e-5
    assert held.drift(small()(held.samples["input"]) * 1.1) > 0.01
    assert str(held.ranges["B"]) == "Range(least=1, usual=2, most=2)"
    assert held.tolerance == 1e-3 and held.versions["torch"] and held.settings.timing_cache == ""
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {"metadata.json", "model.onnx", "samples.safetensors"}
        onnx.checker.check_model(onnx.ModelProto.FromString(archive.read("model.onnx")), full_check=True)
    again = tmp_path / "again.trtbundle"
    loaded.save(again)
    assert again.read_bytes() == bundle.read_bytes()


def test_where_no_engine_is_built_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "count", lambda: 0)
    for passes in ("default", "default,partition{stages=2}"):
        model = nn.Sequential(small(), nn.Linear(8, 4)).eval()
        with pytest.warns(UserWarning, match=r"no engine was built .*save a \.trtbundle") as record:
            compiled = burnish.compile(model, passes, inputs=(torch.randn(2, 4),), backend="tensorrt", progress=False)
        assert [each.filename for each in record] == [__file__]
        assert "warning: no engine was built" in str(compiled.report)


@pytest.mark.parametrize("passes", ["default,partition{stages=2,times=measured}", "canonicalize,prune{latency=0.5}"])
def test_passes_do_not_measure_what_stands_for_an_engine(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "count", lambda: 0)
    wide = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    with pytest.raises(burnish.BurnishError, match="no engine was built"):
        burnish.compile(wide, passes, inputs=(torch.randn(2, 4),), backend="tensorrt", progress=False)


def test_numbers_and_weights_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 2 GB the weights are a part of their own; the limit is lowered here."""
    monkeypatch.setattr(files, "MAX_INLINE", 1000)
    model, x = Counted().eval(), torch.randn(2, 4)
    made = burnish.compile(model, inputs=(x,), backend="tensorrt", progress=False)
    made.save(tmp_path / "net.trtbundle")
    with zipfile.ZipFile(tmp_path / "net.trtbundle") as archive:
        assert "model.data" in archive.namelist()
    loaded = burnish.load(tmp_path / "net.trtbundle")
    assert isinstance(loaded, BundleArtifact)
    found = loaded(torch.cat([x, x]))
    torch.testing.assert_close(found["y"], model(torch.cat([x, x]))["y"], rtol=1e-4, atol=1e-5)
    assert found["rows"] == 4 and loaded.bundle.expected["rows"] == 2


def test_the_parser_gets_weights_above_2_gb_by_a_path(
    gpus: Gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_INLINE", 1000)
    model = nn.Sequential(nn.Linear(4, 300), nn.ReLU()).eval()
    x = torch.randn(2, 4)
    made = burnish.compile(model, inputs=(x,), backend="tensorrt", progress=False)
    assert isinstance(made.artifact, TensorRTArtifact)
    torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_plan_is_a_part_of_its_own(engine: Path) -> None:
    with zipfile.ZipFile(engine) as archive:
        assert archive.read("engine.plan").startswith(b"fake plan")


def test_an_engine_of_another_release(gpus: Gpus, engine: Path) -> None:
    gpus.install(NEW)
    with pytest.raises(
        BackendError, match=r"net\.engine: built by TensorRT 10\.13\.2\.6, and this is 11\.2.*build-trt"
    ):
        burnish.load(engine)


@pytest.mark.parametrize(("built", "here", "runs"), [("10.13.2", "10.15.0", True), ("10.13.2", "11.2.0", True),
    ("10.13.2", "10.12.0", False), ("11.2.0", "10.13.0", False), ("11.2.0", "11.4.1", True)])  # fmt: skip
def test_version_compatible_engines(gpus: Gpus, built: str, here: str, runs: bool, tmp_path: Path) -> None:
    gpus.install(built)
    backend = "tensorrt{version_compatible=true}"
    x = torch.randn(2, 4)
    burnish.compile(small(), inputs=(x,), backend=backend, progress=False).save(tmp_path / "net.engine")
    gpus.install(here)
    if runs:
        with pytest.raises(
            BackendError, match=r"brings a runtime of its own, code that would be executed: .*host_code=True"
        ):
            burnish.load(tmp_path / "net.engine")
        loaded = burnish.load(tmp_path / "net.engine", host_code=True)
        assert isinstance(loaded, TensorRTArtifact)
        torch.testing.assert_close(loaded(x), small()(x), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(BackendError, match=f"built by TensorRT {built}, and this is {here}"):
            burnish.load(tmp_path / "net.engine", host_code=True)


@pytest.mark.parametrize(("name", "capability"), [("Other GPU", (9, 0)), ("Fake GPU", (8, 6))])
def test_an_engine_of_another_gpu(gpus: Gpus, engine: Path, name: str, capability: tuple[int, int]) -> None:
    gpus.names, gpus.capabilities = [name], [capability]
    with pytest.raises(
        BackendError, match=r"built on Fake GPU \(compute capability 9\.0\), and this GPU is .*build-trt"
    ):
        burnish.load(engine)


def test_an_engine_where_nothing_runs_it(gpus: Gpus, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.names.clear()
    with pytest.raises(BackendError, match=r"net\.engine: running an engine needs a GPU, and PyTorch sees none"):
        burnish.load(engine)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        MissingDependencyError, match=r"net\.engine: .*needs TensorRT 10\.12 or later .*burnish\[tensorrt\]"
    ):
        burnish.load(engine)


def test_a_plan_that_tensorrt_does_not_take(engine: Path) -> None:
    with zipfile.ZipFile(engine) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(engine, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, b"no plan" if name == "engine.plan" else part)
    with pytest.raises(FileFormatError, match=r"net\.engine: TensorRT 10.* does not take the engine: Serialization"):
        burnish.load(engine)


def test_damaged_engines(engine: Path) -> None:
    check_damage(engine)


def test_damaged_bundles(bundle: Path) -> None:
    check_damage(bundle)


def check_damage(path: Path) -> None:
    whole, randomness = path.read_bytes(), random.Random(3)
    refusals: list[str] = []
    for _ in range(300):
        path.write_bytes(damaged(whole, randomness))
        try:
            burnish.load(path)
        except FileFormatError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(path.name in refusal for refusal in refusals)
    for content in (b"", whole[: len(whole) // 2], b"ftfy, no archive"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=path.name):
            burnish.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(format="something else"),
        lambda data: data.update(version=2),
        lambda data: data.pop("ranges"),
        lambda data: data["ranges"].update(B=[8, 4, 2]),
        lambda data: data.update(settings={"precision": "fp16"}),
        lambda data: data.update(tolerance="much"),
        lambda data: data.update(tolerance=float("nan")),
        lambda data: data["numbers"].update({"input/input": [1]}),
        lambda data: data["numbers"].update({"input/other": 1}),
        lambda data: data["numbers"].update({"output/other": 1}),
        lambda data: data.update(device=None),
    ],
)
def test_bundles_that_contradict_themselves(bundle: Path, change: Any) -> None:
    rewrite(bundle, change)
    with pytest.raises(FileFormatError, match=r"net\.trtbundle"):
        burnish.load(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(format="burnish TensorRT bundle"),
        lambda data: data.pop("convention"),
        lambda data: data.update(convention="{}"),
        lambda data: data.update(inputs={}),
        lambda data: data["outputs"].clear(),
        lambda data: data.update(capability=[9]),
        lambda data: data["places"].update(x=3),
    ],
)
def test_engines_that_contradict_themselves(engine: Path, change: Any) -> None:
    rewrite(engine, change)
    with pytest.raises(FileFormatError, match=r"net\.engine"):
        burnish.load(engine)


def test_an_engine_that_computes_other_types(engine: Path) -> None:
    rewrite(engine, lambda data: data["inputs"].update(input=["float16", ["B", 4]]))
    with pytest.raises(FileFormatError, match=r"'input' is torch\.float32, and the graph has torch\.float16"):
        burnish.load(engine)


def test_compressed_archives_are_refused(bundle: Path) -> None:
    """Nothing that grows without bound is unpacked."""
    with zipfile.ZipFile(bundle) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(FileFormatError, match="compressed"):
        burnish.load(bundle)


def test_where_nothing_can_be_written(bundle: Path, tmp_path: Path) -> None:
    loaded = burnish.load(bundle)
    assert isinstance(loaded, BundleArtifact)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot be written"):
        loaded.save(tmp_path / "no" / "net.trtbundle")
    assert sorted(tmp_path.iterdir()) == before
