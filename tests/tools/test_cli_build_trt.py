"""`burnish build-trt` on a fake TensorRT: one command builds, runs, verifies, times and writes down."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from command_line import Command
from torch import nn

import burnish as api
from burnish.backends.tensorrt import TensorRTArtifact, device
from tests.conftest import Gpus
from tests.fake_tensorrt import NEW, OLD

pytestmark = pytest.mark.filterwarnings(
    "ignore:no engine was built", "ignore:the thresholds of exits are not calibrated"
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle from a machine without a GPU."""
    with monkeypatch.context() as patched:
        patched.setattr(device, "count", lambda: 0)
        backend = 'tensorrt{profiles=["B=1:2:8"]}'
        compiled = api.compile(net(), inputs=(torch.randn(2, 4),), backend=backend, progress=False)
        compiled.save(tmp_path / "net.trtbundle")
    return tmp_path / "net.trtbundle"


@pytest.mark.parametrize("release", [OLD, NEW])
def test_everything_in_one_command(burnish: Command, bundle: Path, gpus: Gpus, release: str, tmp_path: Path) -> None:
    gpus.install(release)
    result = burnish("build-trt", bundle, "--out", tmp_path / "m.engine", "--seconds", "0.01")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "m.engine.json").read_text())
    assert data["verified"] is True and 0 <= data["error"] < data["tolerance"] == 1e-3
    assert data["versions"]["tensorrt"] == release and data["versions"]["torch"] == torch.__version__
    assert data["gpus"] == ["Fake GPU"] and data["build_seconds"] > 0 and data["latency"]["median"] > 0
    assert data["stages"][0]["engine"]["layers"] > 0 and data["stages"][0]["profiles"] == ["B=1:2:8"]
    assert f"TensorRT {release} on Fake GPU" in result.stdout and "latency: median" in result.stdout
    loaded = api.load(tmp_path / "m.engine")
    assert isinstance(loaded, TensorRTArtifact)
    torch.testing.assert_close(loaded(torch.ones(8, 4)), net()(torch.ones(8, 4)), rtol=1e-4, atol=1e-5)


def test_the_engine_stands_beside_its_bundle(burnish: Command, bundle: Path, gpus: Gpus, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    result = burnish("build-trt", bundle, "--seconds", "0", "--timing-cache", cache, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "net.engine.json").read_text())
    assert (tmp_path / "net.engine").exists() and cache.exists()


def test_outputs_that_are_wrong(burnish: Command, bundle: Path, gpus: Gpus, tmp_path: Path) -> None:
    """No engine is written, and the result says by how much."""
    from safetensors.torch import load, save

    with zipfile.ZipFile(bundle) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    tensors = load(parts["samples.safetensors"])
    tensors["output/output"] = tensors["output/output"] * 1.5
    parts["samples.safetensors"] = save(tensors)
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    result = burnish("build-trt", bundle, "--seconds", "0")
    assert result.exit_code == 1
    assert "from the expected ones, where 0.001 is allowed: no engine is written" in result.stderr
    data = json.loads((tmp_path / "net.engine.json").read_text())
    assert data["verified"] is False and data["error"] == pytest.approx(1 / 3, rel=1e-3)
    assert not (tmp_path / "net.engine").exists()


def test_stages(burnish: Command, gpus: Gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.passes.test_exits import Pictures

    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    passes = "default,insert-exits{exits=1,index=true,thresholds=[0.25]}"
    with monkeypatch.context() as patched:
        patched.setattr(device, "count", lambda: 0)
        compiled = api.compile(Pictures().eval(), passes, inputs=(x,), backend="tensorrt", progress=False)
        compiled.save(tmp_path / "net.trtbundle")
        expected = compiled(x)
    result = burnish("build-trt", tmp_path / "net.trtbundle", "--seconds", "0.01")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "net.engine.json").read_text())
    assert [each["stage"] for each in data["stages"]] == ["stage1", "stage2"]
    assert data["verified"] is True and data["latency"]["calls"] > 0
    torch.testing.assert_close(api.load(tmp_path / "net.engine")(x), expected, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_without_tensorrt(burnish: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = burnish("build-trt", bundle)
    assert result.exit_code == 1
    assert "build-trt needs TensorRT 10.12 or later" in result.stderr and "burnish[tensorrt]" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["net.trtbundle"]


def test_without_a_gpu(burnish: Command, bundle: Path, gpus: Gpus, tmp_path: Path) -> None:
    gpus.names.clear()
    result = burnish("build-trt", bundle)
    assert result.exit_code == 1
    assert "needs a GPU, and PyTorch sees none" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["net.trtbundle"]


def test_a_build_that_fails(burnish: Command, bundle: Path, gpus: Gpus, tmp_path: Path) -> None:
    gpus.tensorrt.parts.unsupported.add("Relu")
    result = burnish("build-trt", bundle)
    assert result.exit_code == 1
    # The source line travels in the bundle.
    assert "_1 (Relu) from " in result.stderr and "activation.py:" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["net.trtbundle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none.trtbundle"], "no such file"),
        (["{bundle}", "--out", "{tmp}/m.plan"], "an engine ends in .engine"),
        (["{bundle}", "--out", "{tmp}/no/m.engine"], "there is no folder"),
        (["{bundle}", "--out", "{bundle}"], "take the place of the bundle"),
        (["{bundle}", "--timing-cache", "{tmp}/no/cache"], "a file in a folder that exists"),
        (["{tmp}/other.trtbundle"], "other.trtbundle: no burnish TensorRT bundle, or damaged"),
        (["{tmp}"], "there is no manifest.json"),
    ],
)
def test_bad_input(
    burnish: Command, bundle: Path, gpus: Gpus, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "other.trtbundle").write_text("no archive")
    before = sorted(tmp_path.iterdir())
    result = burnish("build-trt", *(each.format(tmp=tmp_path, bundle=bundle) for each in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert gpus.tensorrt.parts.builds == []


def test_compile_writes_a_bundle(burnish: Command, tmp_path: Path) -> None:
    model = "nets_of_the_command_tests:with_inputs"
    result = burnish("compile", model, "-b", "tensorrt", "-o", tmp_path / "net.trtbundle")
    assert result.exit_code == 0, result.output
    assert "no engine was built" in result.stdout
    assert (tmp_path / "net.trtbundle").is_file()
    result = burnish("compile", model, "-b", "tensorrt", "-o", tmp_path / "net.onnx")
    assert result.exit_code == 2 and "ends in .engine or .trtbundle" in result.stderr


def test_a_bundle_of_stages_takes_the_place_of_an_older_one(burnish: Command, tmp_path: Path) -> None:
    model, passes = "nets_of_the_command_tests:with_inputs", "default,partition{stages=2}"
    for _ in range(2):
        result = burnish("compile", model, "-b", "tensorrt", "-p", passes, "-o", tmp_path / "net.trtbundle")
        assert result.exit_code == 0, result.output
    assert {each.name for each in (tmp_path / "net.trtbundle").iterdir()} == {
        "manifest.json", "stage1.trtbundle", "stage2.trtbundle"
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["bench", "profile"])
def test_a_bundle_is_run_but_not_timed(burnish: Command, bundle: Path, verb: str) -> None:
    assert burnish("run", bundle).exit_code == 0
    result = burnish(verb, bundle)
    assert result.exit_code == 1
    assert f"{bundle}: {'benchmark' if verb == 'bench' else verb}: no engine was built" in result.stderr
