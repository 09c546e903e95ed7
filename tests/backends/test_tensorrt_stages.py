"""Early exits as engines with gates between them, and partitioned Programs as an engine per stage on its GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import burnish
from burnish import BackendError, Compiled
from burnish.backends.stages import StagedArtifact
from burnish.backends.stages.eager import EagerArtifact
from burnish.backends.tensorrt import BundleArtifact, TensorRTArtifact, device
from burnish.backends.tensorrt.gates import cut_at_gates
from tests.conftest import Gpus
from tests.fake_tensorrt import NEW, OLD
from tests.passes.test_exits import Pictures, Text
from tests.passes.test_partition import Net, inputs

pytestmark = pytest.mark.filterwarnings(
    "ignore:the thresholds of exits are not calibrated", "ignore:no engine was built"
)


def pictures() -> torch.Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def with_exits(threshold: float, exits: int, backend: str, after: str = "") -> Compiled:
    passes = f"default,insert-exits{{exits={exits},index=true,thresholds=[{threshold}]}}{after}"
    return burnish.compile(Pictures().eval(), passes, inputs=(pictures(),), backend=backend, progress=False)


def kinds(artifact: StagedArtifact) -> str:
    return "".join("g" if isinstance(part, EagerArtifact) else "e" for part in artifact.parts)


@pytest.mark.parametrize("release", [OLD, NEW])
@pytest.mark.parametrize("exits", [1, 2])
def test_exits_are_gates_between_engines(gpus: Gpus, release: str, exits: int, tmp_path: Path) -> None:
    gpus.install(release)
    for threshold in (0.0, 0.25, 1.0):
        whole = with_exits(threshold, exits, "onnx")
        made = with_exits(threshold, exits, 'tensorrt{profiles=["B=1:4:8"]}')
        assert isinstance(made.artifact, StagedArtifact)
        assert kinds(made.artifact) == "eg" * (exits + 1)
        made.save(tmp_path / "net.engine")
        loaded = burnish.load(tmp_path / "net.engine")
        for count in (1, 2, 8):
            logits, index = whole(pictures()[:count])
            for each in (made, loaded):
                found, where = each(pictures()[:count])
                assert where.tolist() == index.tolist()
                torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
    assert {each.suffix for each in (tmp_path / "net.engine").iterdir()} == {".engine", ".burnish", ".json"}


def test_an_engine_without_rows_is_not_run(gpus: Gpus) -> None:
    everybody, nobody = with_exits(0.0, 1, "tensorrt"), with_exits(1.0, 1, "tensorrt")
    runs = []
    for made in (everybody, nobody):
        before = len(gpus.tensorrt.parts.runs)
        made(pictures())
        runs.append(len(gpus.tensorrt.parts.runs) - before)
    assert runs == [1, 2]


def test_as_many_rows_may_stay_as_there_are_samples(gpus: Gpus) -> None:
    made = with_exits(0.25, 2, 'tensorrt{profiles=["B=2:4:16"]}').artifact
    assert isinstance(made, StagedArtifact)
    ranges = [part.file.profiles for part in made.parts if isinstance(part, TensorRTArtifact)]
    assert ranges[0] == ("B=2:4:16",)
    # What stays of the samples is what the rest is tuned for; nobody says how many stay, but not more than all.
    assert all(each[0].startswith("B=1:") and each[0].endswith(":16") for each in ranges[1:])


def test_masks_go_through_gates(gpus: Gpus) -> None:
    """What every layer reads, an input among it, loses its rows at every gate."""
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 50, (6, 7)), (torch.rand(6, 7) > 0.2).long()
    model = Text().eval()
    passes = "default,insert-exits{layers=[0,1],head=copy,thresholds=[0.38],index=true}"
    whole, made = (
        burnish.compile(model, passes, inputs=(ids, mask), backend=backend, progress=False)
        for backend in ("onnx", "tensorrt")
    )
    logits, index = whole(ids, mask)
    found, where = made(ids, mask)
    assert len(set(index.tolist())) > 1, "all samples leave by one exit: another threshold shows more"
    assert where.tolist() == index.tolist()
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


def test_a_program_without_exits_is_not_cut() -> None:
    class Rows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.index_select(0, torch.nonzero(x[:, 0] > 0).squeeze(1)) + 1

    program = burnish.capture(Rows(), (torch.randn(4, 3),))
    assert cut_at_gates(program)[0] is program


def test_partitions_have_an_engine_each_on_their_gpu(gpus: Gpus, tmp_path: Path) -> None:
    gpus.names, gpus.capabilities = ["A", "B"], [(9, 0), (8, 0)]
    model = Net().eval()
    made = burnish.compile(model, "default,partition{stages=3}", inputs=inputs(4), backend="tensorrt", progress=False)
    assert isinstance(made.artifact, StagedArtifact)
    assert [part.file.gpu for part in made.artifact.parts if isinstance(part, TensorRTArtifact)] == ["A", "B", "A"]
    before = len(gpus.tensorrt.parts.runs)
    torch.testing.assert_close(made(*inputs(4)), model(*inputs(4)), rtol=1e-4, atol=1e-5)
    assert gpus.tensorrt.parts.runs[before:] == [1000, 1001, 1000]
    made.save(tmp_path / "net")
    loaded = burnish.load(tmp_path / "net")
    torch.testing.assert_close(loaded(*inputs(3)), model(*inputs(3)), rtol=1e-4, atol=1e-5)
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert [each["file"] for each in manifest["stages"]] == [f"stage{index}.engine" for index in (1, 2, 3)]
    gpus.names, gpus.capabilities = ["A"], [(9, 0)]
    with pytest.raises(
        BackendError, match=r"stage2\.engine: built on B \(compute capability 8\.0\), and this GPU is A"
    ):
        burnish.load(tmp_path / "net")


def test_stages_that_bring_code(gpus: Gpus, tmp_path: Path) -> None:
    made = with_exits(0.25, 1, "tensorrt{version_compatible=true}")
    made.save(tmp_path / "net.engine")
    with pytest.raises(BackendError, match="brings a runtime of its own"):
        burnish.load(tmp_path / "net.engine")
    # The option is the engines': gates among them have none.
    loaded = burnish.load(tmp_path / "net.engine", host_code=True)
    torch.testing.assert_close(loaded(pictures()), made(pictures()))  # type: ignore[operator]


class Crossed(nn.Module):
    """What comes second is read first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(y.relu().sum(1, keepdim=True)).relu()).relu()
        return self.head(hidden + x.sum(1, keepdim=True))


@pytest.mark.parametrize("passes", ["default", "default,partition{stages=2}", "default,insert-exits{exits=1}"])
def test_sizes_keep_their_names_in_stages(gpus: Gpus, passes: str) -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 6)
    dims = [{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}] * 2
    backend = 'tensorrt{profiles=["B=1:2:4","S0=1:4:9","S1=1:6:7"]}'
    made = burnish.compile(
        Crossed().eval(), passes, inputs=(x, y), dynamic_shapes=dims, backend=backend, progress=False
    )
    assert made(torch.randn(4, 9), torch.randn(4, 7)).shape == (4, 3)
    with pytest.raises(burnish.InputError, match="has size 8 in dimension 1"):
        made(torch.randn(4, 9), torch.randn(4, 8))
    with pytest.raises(burnish.InputError, match="has size 10 in dimension 1"):
        made(torch.randn(4, 10), torch.randn(4, 7))


@pytest.mark.parametrize("passes", ["default,partition{stages=2}", "default,insert-exits{exits=1}"])
@pytest.mark.parametrize("profile", ["S0=1:2:3", "B=3:4:8"])
def test_profiles_take_the_example_inputs(gpus: Gpus, passes: str, profile: str) -> None:
    dims = [{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}] * 2
    with pytest.raises(burnish.OptionError, match=f"the example inputs have .*, which {profile} does not take"):
        burnish.compile(
            Crossed().eval(), passes, inputs=(torch.randn(2, 4), torch.randn(2, 6)), dynamic_shapes=dims,
            backend=f'tensorrt{{profiles=["{profile}"]}}', progress=False,
        )  # fmt: skip


def test_partitions_with_exits(gpus: Gpus) -> None:
    after = ',partition{cuts="stages.0 | stages.1 | stages.2 + head"}'
    gpus.names, gpus.capabilities = ["A"] * 3, [(9, 0)] * 3
    whole, made = with_exits(0.25, 1, "onnx"), with_exits(0.25, 1, "tensorrt", after)
    assert isinstance(made.artifact, StagedArtifact)
    assert "g" in kinds(made.artifact) and kinds(made.artifact).count("e") >= 3
    for count in (1, 2, 8):
        logits, index = whole(pictures()[:count])
        found, where = made(pictures()[:count])
        assert where.tolist() == index.tolist()
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


def test_bundles_of_stages_without_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "count", lambda: 0)
    whole, made = with_exits(0.25, 1, "onnx"), with_exits(0.25, 1, "tensorrt")
    with pytest.raises(burnish.BurnishError, match="no engine was built"):
        made.save(tmp_path / "net.engine")
    assert list(tmp_path.iterdir()) == []
    made.artifact.save(tmp_path / "plain")
    assert {each.suffix for each in (tmp_path / "plain").iterdir()} == {".trtbundle", ".burnish", ".json"}
    made.save(tmp_path / "net.trtbundle")
    loaded = burnish.load(tmp_path / "net.trtbundle")
    assert isinstance(loaded, StagedArtifact)
    assert {type(part) for part in loaded.parts} == {BundleArtifact, EagerArtifact}
    for staged in (made.artifact, loaded):
        with pytest.raises(burnish.BurnishError, match="benchmark: no engine was built"):
            staged.benchmark((pictures(),))
    for each in (made, loaded):
        torch.testing.assert_close(each(pictures()), whole(pictures()), rtol=1e-4, atol=1e-5)
