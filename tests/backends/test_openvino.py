import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils import _pytree as pytree

import burnish
from burnish.backends.onnx import OnnxArtifact, OnnxBackend, settings
from burnish.backends.onnx.openvino_session import OpenVinoSession
from burnish.backends.onnx.session import Session
from burnish.compiler.errors import BackendError, FileFormatError, MissingDependencyError, OptionError
from tests.backends import onnx_models as models
from tests.backends.test_onnx import BATCHES, assert_same, call, image, needs_openvino
from tests.backends.test_onnx import emit as emit_onnx


def emit(model: nn.Module, inputs: Any, **options: Any) -> OnnxArtifact:
    return emit_onnx(model.eval(), inputs, runtime="openvino", threads=1, **options)


class _Same(nn.Module):
    """Gives every input back, and as a sum of no rows: no arithmetic, so every type stays exact."""

    def forward(self, *xs: torch.Tensor) -> list[torch.Tensor]:
        return [each.flip(0) for each in xs]


@needs_openvino
def test_every_element_type_goes_in_and_out() -> None:
    signed = (torch.int8, torch.int16, torch.int32, torch.int64)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    inputs = tuple(torch.tensor([[1, -7, 100]] * 2).to(dtype) for dtype in (*signed, *floats))
    inputs += tuple(torch.tensor([[1, 7, 200]] * 2).to(dtype) for dtype in (torch.uint8, torch.bool))
    artifact = emit(_Same(), inputs)
    for batch in (0, 1, 3):
        given = tuple(torch.cat([each[:1]] * batch) if batch else each[:0] for each in inputs)
        for found, expected in zip(artifact(*given), _Same()(*given), strict=True):
            assert found.dtype == expected.dtype and torch.equal(found, expected)


@needs_openvino
def test_arithmetic_of_other_types() -> None:
    model, inputs = models.Types(), models.types_inputs()
    found, expected = call(emit(model, inputs), inputs), call(model, inputs)
    # OpenVINO's rounding to bfloat16 is not to the nearest even.
    torch.testing.assert_close(found[2], expected[2], rtol=2**-7, atol=0)
    assert_same(found[:2] + found[3:], expected[:2] + expected[3:])


@needs_openvino
def test_every_kind_of_output_comes_back_and_belongs_to_the_caller() -> None:
    model = models.Containers().eval()
    inputs = {"x": torch.randn(2, 6), "scale": torch.randn(6), "mask": torch.rand(2, 6) > 0.5}
    artifact = emit(model, inputs)
    results = []
    for batch in BATCHES:
        given = {**inputs, "x": torch.randn(batch, 6), "mask": torch.rand(batch, 6) > 0.5}
        expected = pytree.tree_map_only(torch.Tensor, torch.clone, call(model, given))
        results.append((artifact(**given), expected))
    del artifact
    gc.collect()
    for found, expected in results:
        assert_same(found, expected)
    assert len({each.data_ptr() for found, _ in results for each in pytree.tree_leaves(found) if _tensor(each)}) > 20


@needs_openvino
def test_what_a_caller_does_to_results_reaches_nobody() -> None:
    model = models.Containers().eval()
    inputs = {"x": torch.randn(2, 6), "scale": torch.randn(6), "mask": torch.zeros(2, 6, dtype=torch.bool)}
    kept = pytree.tree_map(torch.clone, inputs)
    artifact = emit(model, inputs)
    expected = pytree.tree_map_only(torch.Tensor, torch.clone, call(model, inputs))
    for each in filter(_tensor, pytree.tree_leaves(artifact(**inputs))):
        each.zero_()
    assert all(torch.equal(inputs[name], kept[name]) for name in inputs)
    assert_same(artifact(**inputs), expected)


@needs_openvino
def test_memory_is_written_again_once_no_result_needs_it() -> None:
    artifact = emit(nn.ReLU(), (torch.randn(4, 64),))
    kept = [(x, artifact(x)) for x in (torch.randn(batch, 64) for batch in (4, 1, 9))]
    places = [result.data_ptr() for _, result in kept]
    assert len(set(places)) == 3
    part = kept[2][1][3:].view(-1)
    expected = part.clone()
    del kept[1:]
    # The last memory is still read through `part`; that of the second is free, whatever size comes now.
    reused = artifact(torch.randn(1, 64))
    assert reused.data_ptr() == places[1]
    artifact(torch.randn(9, 64)).fill_(7.0)
    assert torch.equal(part, expected) and torch.equal(kept[0][1], torch.relu(kept[0][0]))


@needs_openvino
def test_scalars_and_inputs_that_are_not_contiguous() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * by, x.sum()

    artifact = emit(Scaled(), (torch.randn(2, 3), torch.tensor(2.0)))
    given = (torch.randn(3, 5).t(), torch.tensor(3.0))
    assert_same(artifact(*given), call(Scaled(), given))


@needs_openvino
def test_weights_are_read_where_they_are() -> None:
    model = nn.Linear(64, 64)
    artifact = emit(model, (torch.randn(2, 64),))
    assert isinstance(artifact.session, OpenVinoSession)
    assert artifact.model.weights["weight"].data_ptr() == model.weight.data_ptr()
    assert all(not each.raw_data for each in artifact.model.graph.graph.initializer if each.name == "weight")
    x = torch.randn(3, 64)
    assert_same(artifact(x), call(model, (x,)))


@needs_openvino
def test_threads_may_call_at_once() -> None:
    model = models.Cnn().eval()
    artifact = emit(model, image())
    given = [(torch.randn(1 + index, 3, 16, 16),) for index in range(4)]
    expected = [call(model, each) for each in given]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for _ in range(20):
                assert_same(artifact(*given[index]), expected[index])
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@needs_openvino
def test_threads_may_be_the_first_to_need_openvino(tmp_path: Path) -> None:
    burnish.compile(models.Cnn().eval(), inputs=image(), backend="onnx").save(tmp_path / "model.onnx")
    code = f"""
import threading
import torch
from burnish.backends.onnx import OnnxBackend

failures = []
start = threading.Barrier(4)

def work():
    try:
        artifact = OnnxBackend().load({str(tmp_path / "model.onnx")!r}, {{"runtime": "openvino"}})
        start.wait()
        artifact(torch.randn(1, 3, 16, 16))
    except BaseException as error:
        failures.append(error)

workers = [threading.Thread(target=work) for _ in range(4)]
for each in workers: each.start()
for each in workers: each.join()
raise SystemExit(repr(failures) if failures else 0)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@needs_openvino
def test_the_same_file_runs_in_both_runtimes(tmp_path: Path) -> None:
    x, path = torch.randn(3, 3, 16, 16), tmp_path / "model.onnx"
    compiled = burnish.compile(models.Cnn().eval(), inputs=image(), backend="onnx{runtime=openvino,threads=1}")
    compiled.save(path)
    backend = OnnxBackend()
    openvino, ort = (backend.load(path, {"runtime": each}) for each in ("openvino", "onnxruntime"))
    assert isinstance(openvino.session, OpenVinoSession) and isinstance(ort.session, Session)
    assert_same(compiled(x), ort(x))
    assert_same(openvino(x), ort(x))
    assert any("32 bits" in note for note in openvino.notes()) and not any("32 bits" in note for note in ort.notes())


@needs_openvino
def test_a_file_runs_in_the_runtime_that_it_was_saved_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, backend = torch.randn(3, 3, 16, 16), OnnxBackend()
    passes = "default,precision{dtype=bf16}"
    compiled = burnish.compile(models.Cnn().eval(), passes, inputs=image(), backend="onnx{runtime=openvino,threads=1}")
    compiled.save(tmp_path / "openvino.onnx")
    loaded = backend.load(tmp_path / "openvino.onnx", {"threads": 1})
    assert isinstance(loaded.session, OpenVinoSession)
    assert torch.equal(loaded(x), compiled(x))
    backend.load(tmp_path / "openvino.onnx", {"runtime": "onnxruntime"}).save(tmp_path / "other.onnx")
    assert backend.load(tmp_path / "other.onnx", {}).settings.runtime == "onnxruntime"
    ours = r"openvino\.onnx: it was saved for openvino: .*; or take burnish\.load\(path, runtime=\"onnxruntime\"\)"
    with pytest.raises(OptionError, match=ours):
        backend.load(tmp_path / "openvino.onnx", {"graph_optimization": "basic"})
    with monkeypatch.context() as patch:
        patch.setattr(settings, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match=ours):
            backend.load(tmp_path / "openvino.onnx", {})
    proto = onnx.load(tmp_path / "openvino.onnx")
    next(each for each in proto.metadata_props if each.key == "burnish.runtime").value = "tvm"
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(
        FileFormatError, match=r"foreign\.onnx: made for the runtime 'tvm': this burnish knows onnxruntime"
    ):
        backend.load(tmp_path / "foreign.onnx", {})


@needs_openvino
def test_profile_names_modules_and_rates() -> None:
    artifact = emit(models.Cnn(), image())
    rows = list(artifact.profile())
    convolution = next(row for row in rows if row.operator == "Convolution")
    assert convolution.module == "conv" and convolution.flops == 2 * 8 * 8 * 8 * (2 * 27 + 1)
    linear = next(row for row in rows if row.operator == "FullyConnected")
    assert linear.module == "head" and sum(row.seconds for row in rows) > 0
    counts = artifact.optimized_node_counts()
    assert counts["Convolution"] == 1 and not counts.keys() & {"Const", "Input", "Output", "BatchNormInference"}


@needs_openvino
def test_properties_reach_openvino() -> None:
    def value(artifact: OnnxArtifact, name: str) -> Any:
        assert isinstance(artifact.session, OpenVinoSession)
        return artifact.session.compiled.get_property(name)

    plain = emit(models.Cnn(), image())
    assert value(plain, "INFERENCE_NUM_THREADS") == 1
    assert value(plain, "INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    chosen = emit(models.Cnn(), image(), session_options={"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64})
    assert value(chosen, "DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64
    text = 'onnx{runtime=openvino,session_options=["PERFORMANCE_HINT=THROUGHPUT"]}'
    as_text = burnish.compile(models.Cnn().eval(), inputs=image(), backend=text).artifact
    assert isinstance(as_text, OnnxArtifact)
    assert "THROUGHPUT" in str(value(as_text, "PERFORMANCE_HINT"))
    assert "LATENCY" in str(value(plain, "PERFORMANCE_HINT"))
    with pytest.raises(BackendError, match="NO_SUCH_PROPERTY"):
        emit(models.Cnn(), image(), session_options={"NO_SUCH_PROPERTY": 1})(*image())


@needs_openvino
def test_int8_weights_do_not_make_activations_int8(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (256, 256)).astype(np.int8)
    scale = generator.uniform(0.001, 0.003, 256).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    artifact = _load(nodes, ["B", 256], {"w": weight, "s": scale}, tmp_path)
    x = torch.randn(4, 256)
    torch.testing.assert_close(artifact(x), x @ torch.from_numpy(weight * scale), rtol=1e-4, atol=1e-4)


@needs_openvino
def test_integers_beyond_32_bits_are_refused() -> None:
    class Next(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    artifact = emit(Next(), (torch.arange(4),))
    largest = torch.iinfo(torch.int32).max
    assert artifact(torch.tensor([largest - 1, -largest]))[0] == largest
    with pytest.raises(BackendError, match="'x' has integers beyond 32 bits"):
        artifact(torch.tensor([largest + 1]))


@needs_openvino
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_a_fourier_transform_keeps_its_axis(axis: int, tmp_path: Path) -> None:
    nodes = [helper.make_node("DFT", ["x", "", "axis"], ["y"])]
    artifact = _load(nodes, ["B", 3, 5, 2], {"axis": np.array(axis)}, tmp_path)
    x = torch.randn(4, 3, 5, 2)
    # ONNX counts the dimension of real and imaginary parts too.
    dim = axis if axis >= 0 else axis + 1
    torch.testing.assert_close(
        artifact(x), torch.view_as_real(torch.fft.fft(torch.view_as_complex(x), dim=dim)), rtol=1e-4, atol=1e-4
    )


@needs_openvino
def test_a_fourier_transform_of_another_shape_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("DFT", ["x", "", "axis"], ["y"], onesided=1)]
    artifact = _load(nodes, ["B", 8, 1], {"axis": np.array(1)}, tmp_path, output=["B", 5, 2])
    with pytest.raises(BackendError, match="one-sided DFT"):
        artifact(torch.randn(2, 8, 1))


@needs_openvino
def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    artifact = _load([helper.make_node("Det", ["x"], ["y"])], ["B", 3, 3], {}, tmp_path, output=["B"])
    with pytest.raises(BackendError, match=r"OpenVINO cannot load the graph: (.|\n)*Det"):
        artifact(torch.eye(3).expand(2, 3, 3))


@needs_openvino
def test_a_failing_run_is_a_backend_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    artifact = _load(nodes, ["B"], {"shape": np.array([-1, 4])}, tmp_path, output=["N", 4])
    assert artifact(torch.arange(8.0)).shape == (2, 4)
    with pytest.raises(BackendError, match="OpenVINO failed"):
        artifact(torch.arange(7.0))
    assert artifact(torch.arange(8.0)).shape == (2, 4)


@needs_openvino
@pytest.mark.parametrize("where", ["constant", "branch"])
def test_a_file_cannot_name_an_address(where: str, tmp_path: Path) -> None:
    secret = torch.randn(512)
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[512], data_location=TensorProto.EXTERNAL)
    place = {"location": "*/_ORT_MEM_ADDR_/*", "offset": str(secret.data_ptr()), "length": "2048"}
    for key, text in place.items():
        value.external_data.add(key=key, value=text)
    if where == "constant":
        nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Add", ["x", "c"], ["y"])]
    else:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", 512])
        branch = helper.make_graph([helper.make_node("Add", ["x", "w"], ["z"])], "b", [], [output], [value])
        nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    with pytest.raises(FileFormatError, match=r"tensor name: w\) should be stored in"):
        _load(nodes, ["B", 512], {"flag": np.array(True)}, tmp_path)


@needs_openvino
def test_importing_it_is_silent_and_reports_to_nobody() -> None:
    script = (
        "import sys, torch; from tests.backends.test_openvino import emit, models, image\n"
        "emit(models.Cnn(), image())(*image())\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
        "import importlib.util; assert not any(name.startswith('openvino_telemetry') for name in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": f"src{os.pathsep}."}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_openvino
@pytest.mark.parametrize("name", ["providers", "profile", "graph_optimization"])
def test_options_of_the_other_runtime_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"'{name}'.* is ONNX Runtime's"):
        OnnxBackend().default_passes({"runtime": "openvino", name: "x"})


def test_other_runtimes_are_refused() -> None:
    with pytest.raises(OptionError, match="onnxruntime, openvino"):
        OnnxBackend().default_passes({"runtime": "tvm"})


def test_a_missing_openvino_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'burnish\[openvino\]'"):
        burnish.compile(models.Cnn().eval(), inputs=image(), backend="onnx{runtime=openvino}")


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _load(
    nodes: list[onnx.NodeProto], sizes: list[Any], constants: dict[str, Any], folder: Path, output: Any = None
) -> OnnxArtifact:
    """Load a file from elsewhere, with the input x and the output y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output or sizes)],
        [numpy_helper.from_array(each, name) for name, each in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "a.onnx")
    return OnnxBackend().load(folder / "a.onnx", {"runtime": "openvino"})


@needs_openvino
def test_no_bias_is_lost_where_sizes_are_asked_for() -> None:
    class _Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
            self.register_buffer("k", torch.randn(1, 8, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.cat([self.first(x), self.k.expand(x.shape[0], -1, -1, -1)], 1))

    model, x = _Model().eval(), torch.randn(3, 8, 8, 8)
    with torch.no_grad():
        model.first.bias += 1
    compiled = burnish.compile(
        model, "default,quantize", inputs=(x,), backend="onnx{runtime=openvino}", calibration=[x]
    )
    for given in (x, x[:1]):
        torch.testing.assert_close(compiled(given), compiled.program(given), rtol=0, atol=0.02)
