"""Partitioned models as artifacts: called like the model, in turn and in threads, saved as a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import burnish
from burnish import BackendError, Compiled, FileFormatError, InputError, OptionError
from burnish.backends.stages import StagedArtifact
from burnish.backends.stages.eager import EagerArtifact
from tests.passes.test_partition import Net, inputs

BACKENDS = ("onnx", "torchscript", "stages")


def compiled(backend: str, passes: str = "default,partition{stages=3}") -> Compiled:
    return burnish.compile(Net().eval(), passes, inputs=inputs(4), backend=backend, progress=False)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_called_like_the_model(backend: str, tmp_path: Path) -> None:
    model, made = Net().eval(), compiled(backend)
    made.save(tmp_path / "net.v1")
    loaded = burnish.load(tmp_path / "net.v1")
    assert isinstance(loaded, StagedArtifact)
    assert sorted(each.name for each in (tmp_path / "net.v1").iterdir())[0] == "manifest.json"
    for batch in (1, 4, 7):
        expected = model(*inputs(batch))
        close(made(*inputs(batch)), expected)
        close(loaded(*inputs(batch)), expected)
        ids, keep = inputs(batch)
        close(loaded(keep=keep, ids=ids), expected)
    assert loaded.node_count() == made.artifact.node_count() > 0
    assert made.artifact.benchmark(seconds=0.01).calls > 0
    made.save(tmp_path / "net.v1")
    if backend != "stages":
        rows = made.profile()
        assert rows.seconds > 0
        assert any("stage2: " in note for note in made.report.notes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_micro_batches_in_threads(backend: str, count: int) -> None:
    artifact = compiled(backend).artifact
    assert isinstance(artifact, StagedArtifact)
    close(artifact.pipelined(*inputs(7), micro_batches=count), Net().eval()(*inputs(7)))


def test_what_cannot_be_split() -> None:
    artifact = compiled("torchscript").artifact
    assert isinstance(artifact, StagedArtifact)
    for count in (0, 8, "2"):
        with pytest.raises(InputError, match=f"7 samples cannot be split in {count!r} micro-batches"):
            artifact.pipelined(*inputs(7), micro_batches=count)  # type: ignore[arg-type]
    mean = burnish.compile(
        _Mean().eval(), "default,partition{stages=2}", inputs=(torch.randn(4, 8),), backend="stages", progress=False
    ).artifact
    assert isinstance(mean, StagedArtifact)
    with pytest.raises(InputError, match=r"dimension 0 of output .* is no batch"):
        mean.pipelined(torch.randn(4, 8), micro_batches=2)


def test_what_a_stage_raises_comes_out() -> None:
    artifact = compiled("stages").artifact
    assert isinstance(artifact, StagedArtifact)
    calls = 0
    real = artifact.run_stage

    def failing(index: int, values: Any) -> dict[str, Any]:
        nonlocal calls
        calls += index == 1
        if calls == 2:
            raise RuntimeError("a stage failed")
        return real(index, values)

    artifact.run_stage = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a stage failed"):
        artifact.pipelined(*inputs(8), micro_batches=8)


class _Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).mean(0)


def test_quantized_stages_stay_integer() -> None:
    """A cut takes no integer kernel away: what is dequantized is sent as integers."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(6))).eval()
    x = torch.randn(2, 8, 16, 16)
    whole, cut = (
        burnish.compile(
            model, f"default,quantize{after}", inputs=(x,), calibration=[x], backend="onnx{threads=1}", progress=False
        )
        for after in ("", ",partition{stages=3}")
    )
    close(cut(x), whole(x))
    artifact = cut.artifact
    assert isinstance(artifact, StagedArtifact)
    kernels = [row.operator for row in artifact.profile()]
    assert kernels.count("QLinearConv") == [row.operator for row in whole.profile()].count("QLinearConv") == 6
    for graph in list(cut.program.graphs.values())[1:]:
        assert all(node.meta["val"].dtype in (torch.uint8, torch.int8) for node in graph.find_nodes(op="placeholder"))


@pytest.mark.filterwarnings("ignore:the thresholds of exits are not calibrated")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exits", [1, 2])
def test_stages_behind_an_exit(backend: str, exits: int) -> None:
    """Rows that stay cross, as many as the data want, none too."""
    from tests.passes.test_exits import Pictures

    model, x = Pictures().eval(), torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    for threshold in (0.0, 0.22, 1.0):
        before = f"default,insert-exits{{exits={exits},index=true,thresholds=[{threshold}]}}"
        whole = burnish.compile(model, before, inputs=(x,), backend=backend.replace("stages", "onnx"), progress=False)
        passes = f'{before},partition{{cuts="stages.0 | stages.1 | stages.2 + head"}}'
        cut = burnish.compile(model, passes, inputs=(x,), backend=backend, progress=False)
        for count in (1, 2, 8):
            logits, index = whole(x[:count])
            found, where = cut(x[:count])
            assert where.tolist() == index.tolist()
            close(found, logits)


@pytest.mark.filterwarnings("ignore:the thresholds of exits are not calibrated")
def test_prune_exits_quantize_partition() -> None:
    from tests.passes.test_exits import Pictures

    model, x = Pictures().eval(), torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    before = "default,prune{ratio=0.25},insert-exits{exits=1,index=true,thresholds=[0.22]},quantize"
    whole, cut = (
        burnish.compile(model, passes, inputs=(x,), calibration=[x], backend="onnx", progress=False)
        for passes in (before, f"{before},partition{{stages=3}}")
    )
    for count in (1, 3, 8):
        logits, index = whole(x[:count])
        found, where = cut(x[:count])
        assert where.tolist() == index.tolist()
        close(found, logits)


def _without_file(folder: Path) -> None:
    (folder / "stage2.pt").unlink()


def _swapped(folder: Path) -> None:
    (folder / "stage1.pt").write_bytes((folder / "stage2.pt").read_bytes())


def _truncated(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:200])


def _outside(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data["stages"][0]["file"] = "../stage1.pt"
    (folder / "manifest.json").write_text(json.dumps(data))


def _out_of_order(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data["stages"] = data["stages"][::-1]
    (folder / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_without_file, InputError, "stage2.pt: no such file"),
        (_swapped, FileFormatError, "stage1.pt: not the stage1 of manifest.json"),
        (_truncated, FileFormatError, "manifest.json: cannot be read"),
        (_outside, FileFormatError, "'../stage1.pt' is no name of a file"),
        (_out_of_order, FileFormatError, "no stage before stage3 makes"),
    ],
)
def test_damaged_folders(damage: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path) -> None:
    compiled("torchscript").save(tmp_path / "net")
    damage(tmp_path / "net")
    with pytest.raises(error, match=message):
        burnish.load(tmp_path / "net")


def test_where_a_folder_may_be(tmp_path: Path) -> None:
    made = compiled("torchscript")
    with pytest.raises(OptionError, match=r"saved as a folder: give a name without \.pt"):
        made.save(tmp_path / "net.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="is there already, and no folder of a partitioned model"):
        made.save(tmp_path / "mine")
    with pytest.raises(InputError, match=r"there is no manifest\.json"):
        burnish.load(tmp_path / "mine")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine"]


def test_what_has_no_stages() -> None:
    with pytest.raises(BackendError, match="the program has no stages: put partition into the passes"):
        burnish.compile(Net().eval(), "default", inputs=inputs(4), backend="stages", progress=False)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.last(self.first(x).relu()) * 0 + self.calls


@pytest.mark.parametrize("backend", BACKENDS)
def test_measuring_leaves_buffers_as_they_were(backend: str, tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    made = burnish.compile(
        _Counting().eval(), "default,partition{stages=2}", inputs=(x,), backend=backend, progress=False
    )
    made(x)
    made.artifact.benchmark(seconds=0.01)
    if backend != "stages":
        made.artifact.profile()
    assert float(made(x)[0, 0]) == 2
    made.save(tmp_path / "net")
    loaded = burnish.load(tmp_path / "net")
    assert isinstance(loaded, StagedArtifact)
    assert float(loaded(x)[0, 0]) == 3
    loaded.reset()
    assert float(loaded(x)[0, 0]) == 3
    made.reset()
    assert float(made(x)[0, 0]) == 1


def test_a_program_runs_where_its_inputs_are() -> None:
    """A gate reads what engines left on a GPU, and an input from the CPU; another device stands in for the GPU."""
    program = burnish.capture(_Sum(), (torch.randn(2, 3), torch.randn(2, 3)))
    artifact = EagerArtifact(program)
    assert artifact(torch.ones(2, 3), torch.ones(2, 3, device="meta")).device.type == "meta"
    assert artifact(torch.ones(2, 3), torch.ones(2, 3)).device.type == "cpu"


class _Sum(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y
