"""What is wrong is refused by name: options, programs, files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

import burnish
from burnish.backends.torchscript import TorchScriptArtifact, TorchScriptBackend
from burnish.compiler.capture import capture
from burnish.compiler.errors import BackendError, FileFormatError, InputError, OptionError
from burnish.compiler.registry import register_backend
from tests.backends.torchscript_models import Function

BACKEND = TorchScriptBackend()


@pytest.fixture(scope="module")
def artifact() -> TorchScriptArtifact:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    return BACKEND.emit(capture(model, (torch.randn(2, 3),)), {})


@pytest.fixture
def saved(artifact: TorchScriptArtifact, tmp_path: Path) -> Path:
    artifact.save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_it_is_a_backend() -> None:
    register_backend(TorchScriptBackend)
    assert str(BACKEND.default_passes({})).startswith("canonicalize,fold-batch-norm")


@pytest.mark.parametrize("use", [BACKEND.default_passes, lambda o: BACKEND.load("x.pt", o)])
def test_unknown_options_are_refused(use) -> None:
    with pytest.raises(OptionError, match=r"'torchscript' has no option 'optimise' \(it has none\)"):
        use({"optimise": True})


def test_operators_of_other_libraries_are_found_before_any_work() -> None:
    library = torch.library.Library("elsewhere", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.elsewhere.twice(x.relu())

    program = capture(Function(function), (torch.randn(2, 3),))
    (finding,) = BACKEND.check(program)
    assert finding.operator == "elsewhere.twice"
    assert "not part of libtorch" in finding.reason
    with pytest.raises(BackendError, match=r"cannot take 1 node.*\n  .*twice"):
        BACKEND.emit(program, {})


def test_other_higher_order_operators_are_found() -> None:
    from torch._higher_order_ops.while_loop import while_loop

    def function(x: torch.Tensor) -> torch.Tensor:
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (torch.tensor(0), x))[1]

    (finding,) = BACKEND.check(capture(Function(function), (torch.randn(2, 3),)))
    assert finding.operator == "higher_order.while_loop" and "only cond" in finding.reason


def test_inputs_are_checked(artifact: TorchScriptArtifact) -> None:
    with pytest.raises(InputError, match=r"must have dtype torch.float32, but has torch.float64"):
        artifact(torch.randn(2, 3).double())
    with pytest.raises(InputError, match=r"has size 5 in dimension 1"):
        artifact(torch.randn(2, 5))


def test_a_loaded_artifact_has_no_samples(saved: Path) -> None:
    loaded = BACKEND.load(saved, {})
    with pytest.raises(InputError, match=r"pass inputs"):
        loaded.benchmark()
    assert loaded.benchmark((torch.randn(5, 3),), seconds=0.01).calls >= 1
    assert loaded.profile((torch.randn(5, 3),)).seconds > 0


def test_size_and_nodes(artifact: TorchScriptArtifact, saved: Path) -> None:
    # The zip's own folder is called after the file, and its padding depends on that.
    assert abs(artifact.size() - saved.stat().st_size) < 2000
    assert artifact.node_count() == 3
    assert any("first calls" in note for note in artifact.notes())


def test_profile_names_modules_and_flops(artifact: TorchScriptArtifact) -> None:
    profile = artifact.profile((torch.randn(7, 3),))
    flops = {row.module: row.flops for row in profile}
    assert set(flops) == {"0", "1", "2"}
    assert flops["0"] in (2 * 7 * 3 * 4, 2 * 7 * 3 * 4 + 7 * 4)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = artifact.profile((torch.randn(7, 3),))
    assert {row.operator for row in plain} == {"aten::linear", "aten::relu"}


def test_a_failed_save_leaves_the_old_file(artifact, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved.read_bytes()

    def fail(path: Path, data) -> int:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(burnish.InputError, match=r"cannot be written: disk full"):
        artifact.save(saved)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.pt: no such file"):
        BACKEND.load(tmp_path / "nothing.pt", {})


def test_truncated_files_are_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(FileFormatError, match=r"model.pt"):
            BACKEND.load(saved, {})


def test_damaged_files_are_refused(saved: Path) -> None:
    data = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        names = [each for each in archive.infolist() if each.filename.endswith((".py", "constants.pkl"))]
    for info in names:
        extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
        start = info.header_offset + 30 + len(info.filename) + extra + info.compress_size // 2
        broken = bytearray(data)
        broken[start] ^= 0xFF
        saved.write_bytes(broken)
        with pytest.raises(FileFormatError, match=r"model.pt"):
            BACKEND.load(saved, {})


def test_foreign_files_are_refused(saved: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.pt"
    text.write_text("not a model")
    weights = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(2)}, weights)
    with pytest.raises(FileFormatError, match=r"text.pt: not a TorchScript file"):
        BACKEND.load(text, {})
    with pytest.raises(FileFormatError, match=r"weights.pt: the torchscript backend of burnish did not save"):
        BACKEND.load(weights, {})


@pytest.mark.parametrize(
    "description",
    [
        {},
        [],
        "x",
        {"format": "burnish torchscript", "version": 99},
        {"format": "burnish torchscript", "version": 1, "inputs": 3},
        {"format": "burnish torchscript", "version": 1, "inputs": [], "outputs": [], "state": [], "binding": {}},
    ],
)
def test_a_wrong_description_is_refused(saved: Path, tmp_path: Path, description) -> None:
    changed = tmp_path / "changed.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info, json.dumps(description) if info.filename.endswith("burnish.json") else data)
    with pytest.raises(FileFormatError, match=r"changed.pt"):
        BACKEND.load(changed, {})
