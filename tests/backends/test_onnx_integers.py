"""Which kernels compute in integers: counts, shares, and the rules of the runtimes that float ones missed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import burnish
from burnish.backends.onnx import OnnxArtifact, OnnxBackend
from burnish.backends.onnx.integer_kernels import IntegerKernels
from burnish.backends.onnx.openvino_profile import text_of
from burnish.backends.onnx.openvino_session import OpenVinoSession
from burnish.backends.onnx.session import Session
from burnish.compiler.compile import Compiled
from burnish.compiler.errors import BackendError
from burnish.compiler.numerics import drift

_PASSES = "canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce"
_RUNTIMES = [
    "onnxruntime",
    pytest.param(
        "openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
    ),
]


def _compiled(model: nn.Module, x: torch.Tensor, quantize: str, runtime: str = "onnxruntime") -> Compiled:
    passes = f"{_PASSES},{quantize}" if quantize else _PASSES
    backend = f"onnx{{threads=1,runtime={runtime}}}"
    return burnish.compile(model.eval(), passes, inputs=(x,), backend=backend, calibration=[(x,)])


def _kernels(compiled: Compiled) -> IntegerKernels:
    assert isinstance(compiled.artifact, OnnxArtifact)
    return compiled.artifact.integer_kernels()


class _Cnn(nn.Module):
    """A stem, a max pool, a residual block with a depthwise convolution, a mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.wide = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.depth(torch.relu(self.norm(self.wide(x)))) + x)
        y: torch.Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


_IMAGES = (2, 3, 32, 32)
# Multiply-adds of the layers: outputs times inputs of each.
_CNN = {"stem": 2 * 16 * 256 * 27, "wide": 2 * 16 * 64 * 144, "depth": 2 * 16 * 64 * 9, "head": 2 * 16 * 16}


def _images() -> torch.Tensor:
    return torch.randn(_IMAGES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("runtime", _RUNTIMES)
def test_a_whole_cnn_runs_in_integers(runtime: str) -> None:
    torch.manual_seed(0)
    compiled = _compiled(_Cnn(), _images(), "quantize", runtime)
    found = _kernels(compiled)
    # OpenVINO adds the shortcut within the convolution.
    adds = {"add": (1, 0)} if runtime == "onnxruntime" else {}
    assert found.counts == {"convolution": (3, 0), "pool": (2, 0), "matmul": (1, 0), **adds}
    assert found.share == 1 and not found.floats
    work = {each.module.split(", ")[0].replace("norm", "wide"): each.macs for each in found.kernels if each.macs}
    assert work == _CNN
    (note,) = [note for note in compiled.report.notes if "integer kernels" in note]
    assert "convolution 3 of 3" in note and "100.0% of the multiply-adds" in note
    assert note in str(compiled.report)


@pytest.mark.parametrize("runtime", _RUNTIMES)
def test_a_layer_that_is_kept_float_is_named_with_its_reason(runtime: str) -> None:
    torch.manual_seed(0)
    compiled = _compiled(_Cnn(), _images(), "quantize{keep=[stem]}", runtime)
    found = _kernels(compiled)
    assert found.counts["convolution"] == (2, 1)
    (layer,) = [each for each in found.floats if each.kind == "convolution"]
    assert layer.module == "stem" and layer.macs == _CNN["stem"]
    assert layer.reason == "no Dequantize stands before its input, x and its weight, stem.weight"
    assert found.floats[0] == layer
    assert found.share == pytest.approx(1 - _CNN["stem"] / sum(_CNN.values()))
    text = str(compiled.report)
    assert "convolution 2 of 3" in text and layer.reason in text
    assert f"{layer.operator:24}" in found.table() and layer.reason in found.table()


class _Encoder(nn.Module):
    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        make = functools.partial(nn.TransformerEncoderLayer, 32, 4, 64, batch_first=True, activation="gelu")
        self.layers = nn.ModuleList([make() for _ in range(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


# Batch, tokens, features.
_TOKENS = (2, 6, 32)
# Projections of 3, 1, 2 and 2 times 32 outputs; scores and their sums.
_LINEAR, _ATTENTION = 2 * 6 * 32 * 32 * (3 + 1 + 2 + 2), 2 * 2 * 6 * 6 * 32


@pytest.mark.parametrize("quantize", ["quantize", "quantize-dynamic"])
def test_products_with_weights_of_a_transformer_run_in_integers(quantize: str) -> None:
    torch.manual_seed(0)
    found = _kernels(_compiled(_Encoder(), torch.randn(_TOKENS), quantize))
    assert found.counts["matmul"] == (4, 0) and found.counts["attention"] == (0, 1)
    assert found.share == pytest.approx(_LINEAR / (_LINEAR + _ATTENTION))
    assert found.floats[0].kind == "attention" and "of two activations" in found.floats[0].reason


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_has_no_integers_for_ranges_found_at_run_time() -> None:
    torch.manual_seed(0)
    x = torch.randn(_TOKENS)
    static = _kernels(_compiled(_Encoder(), x, "quantize", "openvino"))
    assert static.share == pytest.approx(_LINEAR / (_LINEAR + _ATTENTION))
    found = _kernels(_compiled(_Encoder(), x, "quantize-dynamic", "openvino"))
    assert found.share == 0
    layers = [each for each in found.floats if each.operator == "FullyConnected"]
    assert len(layers) == 4 and all("found at run time" in each.reason for each in layers)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("keep", [False, True])
def test_openvino_multiplies_queries_and_keys_in_integers(keep: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 32)
    quantize = 'quantize{keep=["*attention*"]}' if keep else "quantize"
    compiled = _compiled(_Encoder(), x, quantize, "openvino")
    artifact = compiled.artifact
    assert isinstance(artifact, OnnxArtifact) and isinstance(artifact.session, OpenVinoSession)
    implementations = [
        text_of(node, "primitiveType")
        for node in artifact.session.compiled.get_runtime_model().get_ordered_ops()
        if text_of(node, "layerType") == "Subgraph" and "attention" in node.get_friendly_name()
    ]
    assert [each.endswith("_i8") for each in implementations] == [not keep]
    assert drift(compiled(x), compiled.program(x)) < 0.02
    # Half of the kernel is float: it does not count.
    assert "attention" in str(_kernels(compiled).floats)


def test_many_float_kernels_are_counted_in_the_report_and_not_listed() -> None:
    torch.manual_seed(0)
    compiled = _compiled(_Encoder(3), torch.randn(_TOKENS), "quantize-dynamic")
    named = [note for note in compiled.report.notes if note.startswith("float: ")]
    assert len(named) == 6
    assert named[-1].startswith(f"float: and {len(_kernels(compiled).floats) - 5} more")


def test_nothing_is_counted_for_a_float_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    make = Session.__init__

    def watched(self: Session, *args: Any, **kwargs: Any) -> None:
        made.append(kwargs.get("inspected", False))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Session, "__init__", watched)
    plain = _compiled(_Cnn(), _images(), "")
    assert made == [False] and not any("integer" in note for note in plain.report.notes)
    made.clear()
    _compiled(_Cnn(), _images(), "quantize")
    # The session that runs the model is the one that is looked into.
    assert made == [True]


def test_a_loaded_artifact_counts_kernels_without_their_work(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = _compiled(_Cnn(), _images(), "quantize")
    compiled.save(tmp_path / "cnn.onnx")
    loaded = burnish.load(tmp_path / "cnn.onnx")
    assert isinstance(loaded, OnnxArtifact)
    before = loaded(_images())
    found = loaded.integer_kernels()
    assert found.counts == _kernels(compiled).counts and found.share is None
    assert not any("integer" in note for note in loaded.notes())
    assert torch.equal(loaded(_images()), before)


def test_layers_in_branches_count_as_float() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            z: torch.Tensor = torch.cond(y.sum() > 0, lambda y: torch.relu(self.second(y)), lambda y: y * 2, (y,))
            return z

    torch.manual_seed(0)
    found = _kernels(_compiled(Branching(), torch.randn(2, 3, 32), "quantize-dynamic"))
    assert found.share == 0.5
    (branches,) = found.floats[:1]
    assert branches.kind == "other" and "branches" in branches.reason


def test_kernels_of_other_providers_are_not_counted() -> None:
    torch.manual_seed(0)
    artifact = _compiled(_Cnn(), _images(), "quantize").artifact
    assert isinstance(artifact, OnnxArtifact)
    settings = dataclasses.replace(artifact.settings, providers=("CUDAExecutionProvider",))
    other = OnnxArtifact(artifact.model, settings)
    with pytest.raises(BackendError, match="CPU provider"):
        other.integer_kernels()


def _node(operator: str, *inputs: str, to: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [to], name=to, **attributes)


_CONSTANTS: Mapping[str, Any] = {
    "s": np.array(0.1, np.float32),
    "z": np.array(0, np.uint8),
    "z3": np.array(3, np.uint8),
    "wide": np.array(0, np.uint16),
    "w4": np.ones((8, 8, 3, 3), np.int8),
    "w4.float": np.linspace(-1, 1, 576, dtype=np.float32).reshape(8, 8, 3, 3),
    "w2": np.ones((8, 8), np.int8),
    "w2.float": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8),
    "ws": np.full(8, 0.1, np.float32),
    "wz": np.zeros(8, np.int8),
    "bias": np.ones(8, np.int32),
    "bias.float": np.ones(8, np.float32),
    "low": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "s6": np.array(6 / 255, np.float32),
    "axes": np.array([2, 3]),
}
_X = (_node("QuantizeLinear", "x", "s", "z", to="xq"), _node("DequantizeLinear", "xq", "s", "z", to="xd"))
_W4 = _node("DequantizeLinear", "w4", "ws", "wz", to="wd", axis=0)
_W2 = _node("DequantizeLinear", "w2", "ws", "wz", to="wd", axis=1)
_B = _node("DequantizeLinear", "bias", "ws", to="bd")
_CONV = _node("Conv", "xd", "wd", to="y", pads=[1, 1, 1, 1])
_Y = (_node("QuantizeLinear", "y", "s", "z", to="yq"), _node("DequantizeLinear", "yq", "s", "z", to="end"))


def _behind(value: str, scale: str, zero: str) -> tuple[onnx.NodeProto, ...]:
    return _node("QuantizeLinear", value, scale, zero, to="q"), _node("DequantizeLinear", "q", scale, zero, to="end")


_RULES = {
    "result": ((*_X, _W4, _CONV), (*_X, _W4, _CONV, *_Y), "its result is an output of the graph"),
    "reader": (
        (*_X, _W4, _CONV, _node("Exp", "y", to="end")),
        (*_X, _W4, _CONV, *_Y),
        "its result has no Quantize behind it: end (Exp) reads it as floats",
    ),
    "readers": (
        (
            *_X,
            _W4,
            _CONV,
            *_Y[:1],
            _node("DequantizeLinear", "yq", "s", "z", to="d"),
            _node("Exp", "y", to="f"),
            _node("Sub", "d", "f", to="end"),
        ),
        (*_X, _W4, _CONV, *_Y),
        "its result has 2 readers: f (Exp) reads it as floats",
    ),
    "input": (
        (_W4, _node("Conv", "x", "wd", to="y", pads=[1, 1, 1, 1]), *_Y),
        (*_X, _W4, _CONV, *_Y),
        "no Dequantize stands before its input, x",
    ),
    "weight": (
        (*_X, _node("Conv", "xd", "w4.float", to="y", pads=[1, 1, 1, 1]), _node("Exp", "y", to="end")),
        (*_X, _W4, _CONV, *_Y),
        "no Dequantize stands before its weight, w4.float, and its result has no Quantize behind it",
    ),
    "relu": (
        (*_X, _W4, _CONV, _node("Relu", "y", to="r"), *_behind("r", "s", "z3")),
        (*_X, _W4, _CONV, _node("Relu", "y", to="r"), *_behind("r", "s", "z")),
        "the Relu behind it stays: the zero point of its Quantize is 3, not 0",
    ),
    "clip": (
        (*_X, _W4, _CONV, _node("Clip", "y", "low", "six", to="r"), *_behind("r", "s", "z")),
        (*_X, _W4, _CONV, _node("Clip", "y", "low", "six", to="r"), *_behind("r", "s6", "z")),
        "the Clip behind it stays",
    ),
    "bits": (
        (*_X, _W4, _CONV, *_behind("y", "s", "wide")),
        (*_X, _W4, _CONV, *_behind("y", "s", "z")),
        "its result is quantized to uint16",
    ),
    "moving bias": (
        (*_X, _W4, _node("Exp", "bias.in", to="b"), _node("Conv", "xd", "wd", "b", to="y", pads=[1, 1, 1, 1]), *_Y),
        (*_X, _W4, _node("Conv", "xd", "wd", "bias.float", to="y", pads=[1, 1, 1, 1]), *_Y),
        "its bias, b (Exp), is float",
    ),
    "transposed": (
        (*_X, _W4, _node("ConvTranspose", "xd", "wd", to="y", pads=[1, 1, 1, 1]), *_Y),
        (*_X, _W4, _CONV, *_Y),
        "transposed convolutions have no integer kernel",
    ),
    "mean": (
        (*_X, _node("ReduceMean", "xd", "axes", to="y"), *_Y),
        (*_X, _node("GlobalAveragePool", "xd", to="y"), *_Y),
        "ReduceMean has no integer kernel; GlobalAveragePool has",
    ),
    "add": (
        (*_X, _node("Add", "xd", "x", to="y"), *_Y),
        (*_X, _node("Add", "xd", "xd", to="y"), *_Y),
        "no Dequantize stands before x",
    ),
    "gemm bias": (
        (*_X, _W2, _node("Gemm", "xd", "wd", "bias.float", to="end")),
        (*_X, _W2, _B, _node("Gemm", "xd", "wd", "bd", to="end")),
        "its bias, bias.float, is float",
    ),
    "gemm zero point": (
        (*_X, _node("DequantizeLinear", "w2", "ws", to="wd", axis=1), _node("Gemm", "xd", "wd", to="end")),
        (*_X, _W2, _node("Gemm", "xd", "wd", to="end")),
        "has no zero point",
    ),
    "gemm alpha": (
        (*_X, _W2, _B, _node("Gemm", "xd", "wd", "bd", to="end", alpha=0.5)),
        (*_X, _W2, _node("Gemm", "xd", "wd", to="end", alpha=0.5)),
        "it has a bias, and its alpha or beta is not 1",
    ),
    "gemm beta": (
        (*_X, _W2, _B, _node("Gemm", "xd", "wd", "bd", to="end", beta=0.5)),
        (*_X, _W2, _B, _node("Gemm", "xd", "wd", "bd", to="end")),
        "it has a bias, and its alpha or beta is not 1",
    ),
    "joined": (
        (*_X, _W2, _node("MatMul", "xd", "wd", to="y"), _node("Add", "y", "bias.float", to="end")),
        (*_X, _W2, _node("MatMul", "xd", "wd", to="end")),
        "joins it with the Add behind it to a Gemm",
    ),
    "activations": (
        (*_X, _node("Exp", "xd", to="e"), _node("MatMul", "e", "e", to="end")),
        (*_X, _node("MatMul", "xd", "xd", to="end")),
        "both its operands are activations",
    ),
}


def _foreign(nodes: tuple[onnx.NodeProto, ...], folder: Path, **options: Any) -> IntegerKernels:
    matrix = any(node.op_type in ("Gemm", "MatMul") for node in nodes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (8, 8) if matrix else (1, 8, 8, 8))]
    if any("bias.in" in node.input for node in nodes):
        inputs.append(helper.make_tensor_value_info("bias.in", TensorProto.FLOAT, (8,)))
    last = nodes[-1].output[0]
    used = {value for node in nodes for value in node.input}
    held = [numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items() if name in used]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, list("mn" if matrix else "nchw"))]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "a.onnx")
    return OnnxBackend().load(folder / "a.onnx", options).integer_kernels()


@pytest.mark.parametrize("rule", _RULES)
def test_rules_of_onnx_runtime(rule: str, tmp_path: Path) -> None:
    """What misses a rule is float and says so; what keeps it is integer."""
    missing, keeping, reason = _RULES[rule]
    (kernel, *_) = _foreign(missing, tmp_path).floats
    assert not kernel.integer and reason in kernel.reason
    found = _foreign(keeping, tmp_path)
    assert found.kernels and not found.floats


def test_without_optimizations_nothing_is_integer(tmp_path: Path) -> None:
    nodes = (*_X, _W4, _CONV, *_Y)
    (kernel,) = _foreign(nodes, tmp_path, graph_optimization="basic").kernels
    assert not kernel.integer and "graph_optimization=basic" in kernel.reason
    assert _foreign(nodes, tmp_path, graph_optimization="extended").share is None
    assert not _foreign(nodes, tmp_path, graph_optimization="extended").floats
