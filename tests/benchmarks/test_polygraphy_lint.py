"""Polygraphy has nothing to say of files for TensorRT, and what it does say of others is passed on."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

import burnish
from benchmarks.models import zoo

pytest.importorskip("polygraphy", reason="files are linted with Polygraphy: pip install 'burnish[dev]'")
pytest.importorskip("onnx_graphsurgeon", reason="lint needs onnx_graphsurgeon: pip install 'burnish[dev]'")

from benchmarks.polygraphy_lint import complaints

_MODELS = ("resnet", "lstm", "condition", "gpt2")
_PASSES = ("default", "default,precision{dtype=fp16}", "default,quantize")


@pytest.mark.parametrize("passes", _PASSES)
@pytest.mark.parametrize("name", _MODELS)
def test_files_for_tensorrt_are_clean(name: str, passes: str, tmp_path: Path) -> None:
    entry = next(each for each in zoo() if each.name == name)
    compiled = burnish.compile(
        entry.model(), passes, entry.inputs(2), backend="onnx{dialect=tensorrt}", calibration=[entry.inputs(2)],
        progress=False,
    )  # fmt: skip
    file = tmp_path / "model.onnx"
    compiled.save(file)
    assert complaints(file, compiled.program.samples) == []


def foreign(tmp_path: Path, *nodes: onnx.NodeProto) -> Path:
    """Write a graph from x to y, float32[2]."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph(list(nodes), "graph", ends[:1], ends[1:])
    file = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), file)
    return file


def test_complaints_are_passed_on(tmp_path: Path) -> None:
    feeds = {"x": torch.ones(2)}
    relu = onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")
    unused = onnx.helper.make_node("Neg", ["x"], ["z"], name="unused")
    assert complaints(foreign(tmp_path, relu), feeds) == []
    assert complaints(foreign(tmp_path, relu, unused), feeds) == [
        "lint: warning: Does not affect outputs, can be removed. ['unused']"
    ]
    unknown = onnx.helper.make_node("Blur", ["x"], ["y"], name="blur")
    assert any("Blur" in each for each in complaints(foreign(tmp_path, unknown), feeds))
    fails = onnx.helper.make_node("Reshape", ["x", "x"], ["y"], name="fails")
    assert "lint: exit status 1" in complaints(foreign(tmp_path, fails), feeds)
