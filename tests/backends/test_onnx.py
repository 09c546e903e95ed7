import gc
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from burnish.backends.onnx import OnnxArtifact, OnnxBackend
from burnish.compiler.capture import capture
from burnish.compiler.errors import BackendError, InputError, OptionError
from tests.backends import onnx_models as models

BATCHES = (1, 2, 3, 17)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
in_both_runtimes = pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])


def emit(model: nn.Module, inputs: Any, **options: Any) -> OnnxArtifact:
    return OnnxBackend().emit(capture(model, inputs), options)


def assert_same(actual: Any, expected: Any) -> None:
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    assert left_spec == right_spec
    for a, e in zip(left, right, strict=True):
        if isinstance(e, torch.Tensor):
            assert a.dtype == e.dtype
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
        else:
            assert type(a) is type(e) and a == e


def resized(inputs: Mapping[str, torch.Tensor] | tuple[torch.Tensor, ...], batch: int) -> Any:
    return pytree.tree_map(lambda each: each[torch.arange(batch) % len(each)], inputs)


def call(function: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return function(**inputs) if isinstance(inputs, Mapping) else function(*inputs)


def check_batches(artifact: OnnxArtifact, model: nn.Module, inputs: Any) -> None:
    for batch in BATCHES:
        given = resized(inputs, batch)
        assert_same(call(artifact, given), call(model, given))


def image() -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, 16, 16),)


@in_both_runtimes
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        pytest.param(models.Cnn(), image(), id="cnn"),
        pytest.param(models.Lstm(), (torch.randn(2, 5, 4),), id="lstm"),
        pytest.param(models.Cond(), (torch.randn(2, 4),), id="cond"),
        pytest.param(models.EarlyExit(), (torch.randn(2, 4),), id="early-exit"),
    ],
)
def test_results_are_the_models_at_every_batch_size(model: nn.Module, inputs: Any, runtime: str) -> None:
    check_batches(emit(model.eval(), inputs, runtime=runtime), model, inputs)


def test_arithmetic_of_every_type() -> None:
    model, inputs = models.Types().eval(), models.types_inputs()
    check_batches(emit(model, inputs), model, inputs)


@in_both_runtimes
@pytest.mark.parametrize("make", [models.tiny_bert, models.tiny_llama, models.tiny_t5])
def test_transformers_run_at_every_batch_size(make: Callable[[], tuple[nn.Module, Any]], runtime: str) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    check_batches(emit(model.eval(), inputs, runtime=runtime), model, inputs)


def test_both_branches_of_a_conditional_run() -> None:
    model = models.Cond().eval()
    artifact = emit(model, (torch.randn(2, 4),))
    for x in (torch.full((3, 4), 9.0), torch.full((3, 4), -9.0)):
        assert_same(artifact(x), call(model, (x,)))
    assert {call(model, (torch.full((1, 4), each),)).sum().item() for each in (9.0, -9.0)} != {0.0}


def test_no_row_may_be_left() -> None:
    model = models.EarlyExit().eval()
    with torch.no_grad():
        model.first.bias[0] = -1e3
    x = torch.randn(3, 4)
    assert_same(emit(model, (torch.randn(2, 4),))(x), call(model, (x,)))


@in_both_runtimes
def test_buffers_are_kept_between_calls_and_reset(runtime: str) -> None:
    model = models.Counter().eval()
    artifact = emit(model, (torch.randn(2, 4),), runtime=runtime)
    xs = [torch.randn(batch, 4) for batch in (2, 3, 1)]
    expected = [call(model, (x,)).clone() for x in xs]
    for x, e in zip(xs, expected, strict=True):
        assert_same(artifact(x), e)
    artifact.reset()
    assert_same(artifact(xs[0]), expected[0])


@in_both_runtimes
def test_benchmark_and_profile_leave_the_state_alone(runtime: str) -> None:
    model = models.Counter().eval()
    x = torch.randn(2, 4)
    artifact = emit(model, (x,), runtime=runtime)
    assert artifact.benchmark(seconds=0.01).calls > 0
    assert len(artifact.profile()) > 0
    assert_same(artifact(x), call(model, (x,)))


def test_every_kind_of_output_comes_back() -> None:
    model = models.Containers().eval()
    inputs = {"x": torch.randn(2, 6), "scale": torch.randn(6), "mask": torch.rand(2, 6) > 0.5}
    artifact = emit(model, inputs)
    for batch in BATCHES:
        given = {**inputs, "x": torch.randn(batch, 6), "mask": torch.rand(batch, 6) > 0.5}
        found = artifact(given["x"], scale=given["scale"], mask=given["mask"])
        assert_same(found, call(model, given))


def test_results_belong_to_the_caller() -> None:
    model = models.Containers().eval()
    inputs = {"x": torch.randn(2, 6), "scale": torch.randn(6), "mask": torch.zeros(2, 6, dtype=torch.bool)}
    artifact = emit(model, inputs)
    expected = call(model, inputs)
    expected = pytree.tree_map_only(torch.Tensor, torch.clone, expected)
    first = artifact(**inputs)
    for each in pytree.tree_leaves(first):
        if isinstance(each, torch.Tensor):
            each.zero_()
    assert inputs["x"].abs().sum() > 0
    second = artifact(**inputs)
    assert_same(second, expected)
    # Outputs outlive the session that made them.
    del artifact
    gc.collect()
    assert_same(second, expected)


def test_an_input_that_is_not_contiguous_is_taken() -> None:
    model = models.Cnn().eval()
    x = torch.randn(2, 16, 3, 16).transpose(1, 2)
    assert_same(emit(model, image())(x), call(model, (x,)))


def test_empty_tensors_go_in_and_out() -> None:
    class Empty(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([x, y], 1) + 1, x * 2

    model = Empty()
    artifact = emit(model, (torch.randn(2, 0), torch.randn(2, 3)))
    for batch in (0, 1, 2):
        given = (torch.randn(batch, 0), torch.randn(batch, 3))
        assert_same(artifact(*given), call(model, given))


def test_wrong_inputs_are_refused_by_name() -> None:
    artifact = emit(models.Cnn().eval(), image())
    with pytest.raises(InputError, match="'x' must have dtype"):
        artifact(torch.zeros(2, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(InputError, match="size 9 in dimension 3"):
        artifact(torch.zeros(2, 3, 16, 9))


def test_nodes_carry_readable_names_and_their_module() -> None:
    graph = emit(models.Cnn().eval(), image()).model.graph.graph
    assert [each.name for each in graph.input] == ["x"] and [each.name for each in graph.output] == ["output"]
    assert [size.dim_param or size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == ["B", 3, 16, 16]
    modules = {node.name: {e.key: e.value for e in node.metadata_props}["burnish.module"] for node in graph.node}
    assert len(modules) == len(graph.node)
    assert modules["conv"] == "conv" and modules["norm"] == "norm" and modules["head"] == "head"
    assert {"conv.weight", "head.bias"} <= {each.name for each in graph.initializer}


def test_every_node_of_a_conditional_carries_metadata() -> None:
    model = emit(models.Cond().eval(), (torch.randn(2, 4),)).model.graph
    assert not model.functions
    stack, names = list(model.graph.node), []
    while stack:
        node = stack.pop()
        names.append(node.name)
        assert "burnish.module" in {entry.key for entry in node.metadata_props}
        stack += [inner for attribute in node.attribute for inner in attribute.g.node]
    assert len(set(names)) == len(names)


def test_emitting_twice_gives_the_same_bytes_and_changes_nothing() -> None:
    model = models.Cnn().eval()
    program = capture(model, image())
    before = program.structural_key()
    first, second = (OnnxBackend().emit(program, {}) for _ in range(2))
    assert program.structural_key() == before
    assert first.model.graph.SerializeToString(deterministic=True) == second.model.graph.SerializeToString(
        deterministic=True
    )


def test_weights_are_not_copied() -> None:
    model = nn.Linear(64, 64).eval()
    artifact = emit(model, (torch.randn(2, 64),))
    assert artifact.model.weights["weight"].data_ptr() == model.weight.data_ptr()


def test_lowering_is_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    emit(models.Cnn().eval(), image())(*image())
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    assert not list(recwarn)


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_opsets(opset: int) -> None:
    model = models.Cnn().eval()
    artifact = emit(model, image(), opset=opset)
    assert [each.version for each in artifact.model.graph.opset_import if each.domain == ""] == [opset]
    assert f"opset {opset}, dialect ort" in artifact.notes()
    x = image()
    assert_same(artifact(*x), call(model, x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opzet": 20}, "there are opset, dialect, simplify, threads"),
        ({"opset": 12}, "from 18 to 23"),
        ({"simplify": "maybe"}, "true, false or 'auto'"),
        ({"threads": -1}, "'threads'"),
        ({"threads": 2**31}, "'threads'"),
        ({"providers": ["NoProvider"]}, "CPUExecutionProvider"),
        ({"graph_optimization": "most"}, "disabled, basic"),
        ({"session_options": 3}, "a dict"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        emit(models.Cnn().eval(), image(), **options)


def test_session_options_reach_onnx_runtime() -> None:
    artifact = emit(
        models.Cnn().eval(),
        image(),
        threads=1,
        graph_optimization="basic",
        session_options={"session.intra_op.allow_spinning": 0},
    )
    options = artifact.session.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_profile_names_modules_and_rates() -> None:
    artifact = emit(models.Cnn().eval(), image())
    rows = list(artifact.profile())
    convolution = next(row for row in rows if row.module == "conv")
    assert convolution.flops == 2 * 8 * 8 * 8 * (2 * 27 + 1) and convolution.seconds > 0
    assert artifact.optimized_node_counts()["BatchNormalization"] == 0


def test_check_names_what_cannot_be_taken() -> None:
    class Fft(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x)

    program = capture(Fft(), (torch.randn(2, 8),))
    found = OnnxBackend().check(program)
    assert found and "complex64" in found[0].reason
    with pytest.raises(BackendError, match="complex64"):
        OnnxBackend().emit(program, {})


def test_an_operator_without_translation_is_named_with_its_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigh(x)[0]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 1

    program = capture(Outer(), (torch.eye(3).expand(2, 3, 3),))
    (found,) = OnnxBackend().check(program)
    assert found.module == "inner" and "neither a translation" in found.reason
    with pytest.raises(BackendError, match=r"inner\.linalg_eigh .*, from inner \(.*test_onnx\.py:\d+\)"):
        OnnxBackend().emit(program, {})


def test_a_translation_that_fails_is_named_with_its_module_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter import _dispatching

    dispatch = _dispatching.dispatch

    def failing(node: torch.fx.Node, registry: Any) -> Any:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise ValueError("no such thing")

        return (fail, "") if node.target is torch.ops.aten.relu.default else dispatch(node, registry)

    monkeypatch.setattr(_dispatching, "dispatch", failing)
    with pytest.raises(BackendError, match=r"relu \(aten\.relu\) from <root> \(.*onnx_models\.py:\d+\): no such thing"):
        emit(models.Cnn().eval(), image())


def test_an_argument_that_the_exporter_ignores_is_found() -> None:
    class Pool(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x, 2, divisor_override=3)

    (found,) = OnnxBackend().check(capture(Pool(), image()))
    assert "divisor_override" in found.reason


def test_checks_find_nothing_in_what_can_be_lowered() -> None:
    for model, inputs in ((models.Cnn(), image()), (models.Cond(), (torch.randn(2, 4),))):
        assert OnnxBackend().check(capture(model, inputs)) == []


def test_the_graph_passes_onnx_checks() -> None:
    artifact = emit(models.EarlyExit().eval(), (torch.randn(2, 4),))
    artifact.model.check()
    assert artifact.node_count() == len(artifact.model.graph.graph.node)
    artifact.model.graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match=r"onnx\.checker"):
        artifact.model.check()
    assert isinstance(artifact.model.graph, onnx.ModelProto)
