import subprocess
from typing import Any

import onnx
import pytest
import torch

from burnish.backends.onnx import OnnxArtifact, OnnxBackend, simplify
from burnish.compiler.capture import capture
from tests.backends import onnx_models as models

X = torch.randn(2, 3, 16, 16)


def emit(**options: Any) -> OnnxArtifact:
    torch.manual_seed(0)
    return OnnxBackend().emit(capture(models.Cnn().eval(), (X,)), options)


def test_simplified_graphs_give_the_same_results_and_keep_metadata() -> None:
    plain, simple = emit(simplify=False), emit(simplify=True)
    assert any(note.startswith("onnxsim: ") for note in simple.notes())
    torch.testing.assert_close(simple(X), plain(X), rtol=1e-5, atol=1e-5)
    assert simple.node_count() <= plain.node_count()
    assert all(node.metadata_props for node in simple.model.graph.graph.node)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda graph: graph.node.pop(), "onnx.checker refuses"),
        (lambda graph: setattr(graph.input[0], "name", "other"), "changed the graph's inputs"),
        (lambda graph: graph.node.add(op_type="QuantizeLinear"), "QuantizeLinear and DequantizeLinear"),
        (
            lambda graph: setattr(next(n for n in graph.node if n.op_type == "Relu"), "op_type", "Abs"),
            "changed an output",
        ),
    ],
)
def test_harm_is_noticed_and_undone(monkeypatch: pytest.MonkeyPatch, change: Any, reason: str) -> None:
    def harmful(graph: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(graph)
        change(result.graph)
        return result

    monkeypatch.setattr(simplify, "_simplify", harmful)
    artifact = emit(simplify=True)
    (note,) = [each for each in artifact.notes() if "onnxsim" in each]
    assert "was dropped" in note and reason in note
    torch.testing.assert_close(artifact(X), emit(simplify=False)(X))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "status -11"),
        ("raise ValueError('bad graph')", "bad graph"),
        ("import time; time.sleep(60)", "longer than"),
    ],
)
def test_a_crash_does_not_take_us_along(monkeypatch: pytest.MonkeyPatch, script: str, reason: str) -> None:
    monkeypatch.setattr(simplify, "_SCRIPT", script)
    monkeypatch.setattr(simplify, "TIMEOUT", 3.0)
    artifact = emit(simplify=True)
    assert any("was dropped" in note and reason in note for note in artifact.notes())
    assert artifact(X).shape == (2, 5)


def test_auto_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert emit().notes() == ["opset 23, dialect ort"]
