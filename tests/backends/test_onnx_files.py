import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import burnish
from burnish.backends.onnx import OnnxArtifact, OnnxBackend, files
from burnish.compiler.capture import capture
from burnish.compiler.errors import FileFormatError
from tests.backends import onnx_models as models

BACKEND = OnnxBackend()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16)


@pytest.fixture
def artifact(x: torch.Tensor) -> OnnxArtifact:
    return BACKEND.emit(capture(models.Cnn().eval(), (x,)), {})


def test_a_saved_file_gives_the_same_results(artifact: OnnxArtifact, x: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    artifact.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    loaded = BACKEND.load(path, {"threads": 1})
    assert torch.equal(loaded(x), artifact(x)) and torch.equal(loaded(x=x), artifact(x))
    assert loaded.node_count() == artifact.node_count() and abs(loaded.size() - path.stat().st_size) < 4096
    onnx.checker.check_model(str(path), full_check=True)


def test_a_loaded_artifact_saves_the_same_bytes(artifact: OnnxArtifact, tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    artifact.save(first)
    BACKEND.load(first, {}).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_it_runs_in_a_process_without_the_model(artifact: OnnxArtifact, x: torch.Tensor, tmp_path: Path) -> None:
    artifact.save(tmp_path / "model.onnx")
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch; from burnish.backends.onnx import OnnxBackend\n"
        "y = OnnxBackend().load(sys.argv[1], {})(torch.load(sys.argv[2]))\n"
        "assert 'tests' not in sys.modules; print(float(y.double().sum()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model.onnx"), str(tmp_path / "x.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "src", "PATH": ""})
    assert float(done.stdout) == pytest.approx(float(artifact(x).double().sum()), rel=1e-6)


def test_containers_and_state_survive(tmp_path: Path) -> None:
    model = models.Containers().eval()
    inputs = {"x": torch.randn(2, 6), "scale": torch.randn(6), "mask": torch.rand(2, 6) > 0.5}
    BACKEND.emit(capture(model, inputs), {}).save(tmp_path / "a.onnx")
    found, expected = BACKEND.load(tmp_path / "a.onnx", {})(**inputs), model(**inputs)
    assert list(found) == list(expected) and found["none"] is None and found["rows"] == 2
    assert torch.equal(found["pair"][1], expected["pair"].right)

    counter = models.Counter().eval()
    x = torch.randn(2, 4)
    artifact = BACKEND.emit(capture(counter, (x,)), {})
    artifact(x)
    artifact.save(tmp_path / "b.onnx")
    loaded = BACKEND.load(tmp_path / "b.onnx", {})
    counter(x)
    for _ in range(2):
        torch.testing.assert_close(loaded(x), counter(x).detach().clone())


class Halving(nn.Module):
    """Keeps state of a type that numpy lacks, in a small and in a large buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("small", torch.tensor(8.0, dtype=torch.bfloat16))
        self.register_buffer("large", torch.full((700,), 4.0, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = x + self.small.float() + self.large.float().sum()
        self.small.copy_((self.small.float() / 2).to(torch.bfloat16))
        self.large.copy_((self.large.float() / 2).to(torch.bfloat16))
        return result


def test_bfloat16_state_survives(tmp_path: Path) -> None:
    BACKEND.emit(capture(Halving(), (torch.zeros(2),)), {}).save(tmp_path / "model.onnx")
    loaded = BACKEND.load(tmp_path / "model.onnx", {})
    assert [float(loaded(torch.zeros(1))) for _ in range(3)] == [2808.0, 1404.0, 702.0]


def test_state_is_an_optional_input_of_the_saved_file(tmp_path: Path) -> None:
    import onnxruntime

    model, x = models.Counter().eval(), torch.randn(2, 4)
    BACKEND.emit(capture(model, (x,)), {}).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    names = [each.name for each in session.get_outputs()]
    assert names == ["output", "count.updated", "total.updated"]
    found = dict(zip(names, session.run(None, {"x": x.numpy()}), strict=True))
    assert found["count.updated"] == 1
    torch.testing.assert_close(torch.from_numpy(found["output"]), model(x).detach())


def test_large_weights_lie_in_one_file_beside(
    artifact: OnnxArtifact, x: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = BACKEND.emit(capture(nn.Linear(48, 40).eval(), (torch.randn(2, 48),)), {})
    given = torch.randn(3, 48)
    monkeypatch.setattr(files, "MAX_INLINE", 1000)
    path = tmp_path / "model.onnx"
    for expected in ("model.data", "model.1.data", "model.data"):
        wide.save(path)
        assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["model.onnx", expected])
        loaded = BACKEND.load(path, {})
        assert torch.equal(loaded(given), wide(given))
    onnx.checker.check_model(str(path), full_check=True)
    # What was loaded stays usable when its files are replaced, and small again means no file beside.
    monkeypatch.setattr(files, "MAX_INLINE", 10**9)
    wide.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert torch.equal(loaded(given), wide(given))


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "model.data"
    theirs.write_bytes(b"mine")
    wide = BACKEND.emit(capture(nn.Linear(48, 40).eval(), (torch.randn(2, 48),)), {})
    path = tmp_path / "model.onnx"
    wide.save(path)
    monkeypatch.setattr(files, "MAX_INLINE", 1000)
    for _ in range(2):
        wide.save(path)
        assert theirs.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 3
    BACKEND.load(path, {})


def test_an_interrupted_save_leaves_the_old_file(
    artifact: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(files, "MAX_INLINE", 1000)
    artifact.save(path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    def fail(self: Path, data: bytes) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(burnish.InputError, match="cannot be written: no space"):
        artifact.save(path)
    left = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert before.items() <= left.items()
    BACKEND.load(path, {})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(artifact: OnnxArtifact, tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.onnx"
    artifact.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FileFormatError, match=r"model\.onnx: .*"):
        BACKEND.load(path, {})


def test_every_truncation_is_refused_or_impossible(artifact: OnnxArtifact, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    artifact.save(path)
    data = path.read_bytes()
    for length in {*range(0, len(data), 997), *range(len(data) - 1500, len(data), 37)}:
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError, match=r"model\.onnx"):
            BACKEND.load(path, {})


@pytest.mark.parametrize("data", [b"", b"hello, world", b"\x00" * 100, b"PK\x03\x04 a zip", b"\x08\x0a"])
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"other\.onnx"):
        BACKEND.load(path, {})


def test_a_missing_or_short_file_of_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_INLINE", 1000)
    path, data = tmp_path / "model.onnx", tmp_path / "model.data"
    BACKEND.emit(capture(nn.Linear(48, 40).eval(), (torch.randn(2, 48),)), {}).save(path)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"model\.data are truncated"):
        BACKEND.load(path, {})
    data.unlink()
    with pytest.raises(FileFormatError, match=r"model\.data cannot be read"):
        BACKEND.load(path, {})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', "null"])
def test_broken_metadata_are_refused(artifact: OnnxArtifact, tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.onnx"
    artifact.save(path)
    proto = onnx.load(path)
    proto.metadata_props[0].value = text
    onnx.save(proto, path)
    with pytest.raises(FileFormatError, match=r"model\.onnx"):
        BACKEND.load(path, {})


def test_metadata_that_name_other_inputs_are_refused(artifact: OnnxArtifact, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    artifact.save(path)
    proto = onnx.load(path)
    data = json.loads(proto.metadata_props[0].value)
    data["outputs"] = {"output": "nowhere"}
    proto.metadata_props[0].value = json.dumps(data)
    onnx.save(proto, path)
    with pytest.raises(FileFormatError, match="names nowhere"):
        BACKEND.load(path, {})


def foreign(**changes: Any) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Mul", ["c", "w"], ["d"])],
        "elsewhere",
        [value("a", TensorProto.FLOAT, ["N", 2]), value("b", TensorProto.FLOAT, ["N", 2])],
        [value("c", TensorProto.FLOAT, ["N", 2]), value("d", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2], [2.0, 3.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **changes)


def test_a_model_from_elsewhere_is_called_by_its_names(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.onnx"
    onnx.save(foreign(), path)
    loaded = BACKEND.load(path, {})
    a, b = torch.randn(3, 2), torch.randn(3, 2)
    for c, d in (loaded(a, b), loaded(a, b=b), loaded(b=b, a=a)):
        torch.testing.assert_close(c, a + b)
        torch.testing.assert_close(d, (a + b) * torch.tensor([2.0, 3.0]))


def test_large_weights_from_elsewhere_may_be_inputs_too(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    weight = torch.arange(600.0)
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "w"], ["b"]), helper.make_node("Neg", ["w"], ["c"])],
        "elsewhere",
        [value("a", TensorProto.FLOAT, [600]), value("w", TensorProto.FLOAT, [600])],
        [value("b", TensorProto.FLOAT, [600]), value("c", TensorProto.FLOAT, [600])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=3), tmp_path / "a.onnx")
    loaded = BACKEND.load(tmp_path / "a.onnx", {})
    loaded.save(tmp_path / "b.onnx")
    for each in (loaded, BACKEND.load(tmp_path / "b.onnx", {})):
        b, c = each(torch.ones(600))
        assert torch.equal(b, weight + 1)
        assert torch.equal(c, -weight)


def test_weights_from_elsewhere_may_have_types_that_only_onnx_runtime_knows(tmp_path: Path) -> None:
    value, one = helper.make_tensor_value_info, 56
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT), helper.make_node("Add", ["a", "v"], ["b"])],
        "elsewhere",
        [value("a", TensorProto.FLOAT, [4000])],
        [value("b", TensorProto.FLOAT, [4000])],
        [helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [4000], bytes([one] * 4000), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save_model(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    assert torch.equal(BACKEND.load(tmp_path / "a.onnx", {})(torch.ones(4000)), torch.full((4000,), 2.0))


def test_a_model_from_elsewhere_without_tensors_is_refused(tmp_path: Path) -> None:
    model = foreign()
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N"]))
    model.graph.input[0].type.CopyFrom(kind)
    onnx.save(model, tmp_path / "elsewhere.onnx")
    with pytest.raises(FileFormatError, match=r"elsewhere\.onnx: 'a' is no tensor"):
        BACKEND.load(tmp_path / "elsewhere.onnx", {})


def test_weights_may_only_lie_beside(tmp_path: Path) -> None:
    model = foreign()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match="not beside the file"):
        BACKEND.load(tmp_path / "model.onnx", {})
