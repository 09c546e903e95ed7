"""What the engine inspector says, in the form of 10.x and of 11 (NVIDIA, "Engine Inspector"; "Migrating ... 11.x")."""

from __future__ import annotations

import json

import pytest

from burnish.backends.onnx.model import Place
from burnish.backends.tensorrt.inspection import Inspection

PLACES = {
    name: Place(module, name, operator, (), name)
    for name, module, operator in (
        ("conv1.q", "conv1", "QuantizeLinear"),
        ("conv1.dq", "conv1", "DequantizeLinear"),
        ("conv1", "conv1", "Conv"),
        ("relu", "", "Relu"),
        ("head.q", "head", "QuantizeLinear"),
        ("head.dq", "head", "DequantizeLinear"),
        ("head", "head", "Gemm"),
    )
}


def layer(name: str, kind: str, text: str, old: bool, *nodes: str) -> dict[str, object]:
    words = text.split("|")
    tensor = {"Format/Datatype": words[0]} if old else {"Format": words[0], "DataType": words[1]}
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1, 16], **tensor}],
        "Outputs": [],
        "Metadata": "\x1e".join(f"[ONNX Layer: {each}]" for each in nodes),
    }


@pytest.mark.parametrize("old", [True, False])
def test_layers_types_and_pairs(old: bool) -> None:
    text = json.dumps(
        {
            "Layers": [
                layer("fused", "CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format|Int8", old,
                      "conv1.q", "conv1.dq", "conv1", "relu"),
                layer("__myl_Quan", "kgen", "Row major linear FP16 format|Half", old, "head.q", "head.dq"),
                layer("gemm", "gemm", "Row major linear BFloat16 format|BFloat16", old, "head"),
                layer("Reformat", "Reformat", "N/A due to dynamic shapes|N/A", old),
            ]
        }
    )  # fmt: skip
    found = Inspection.of(text, PLACES)
    data = found.data()
    assert data["layers"] == 4 and data["precisions"] == {"int8": 1, "fp16": 1, "bf16": 1}
    assert data["int8_layers"] == ["fused"] and data["pairs"] == 4
    assert data["pairs_alone"] == [{"node": "head.q", "module": "head"}, {"node": "head.dq", "module": "head"}]
    summary = found.summary()
    assert "1 of 2 convolutions and matrix products compute in int8" in summary
    assert "2 of 4 quantizes and dequantizes fused" in summary
    assert "head.q (QuantizeLinear) did not fuse: module head" in summary
    assert found.named("fused").nodes == ("conv1.q", "conv1.dq", "conv1", "relu")
    assert found.named("conv1 + relu").nodes == ("conv1", "relu"), "names alone, where the profiler has others"


def test_names_alone() -> None:
    """What the inspector says of engines that were built with less detail."""
    found = Inspection.of(json.dumps({"Layers": ["conv1 + relu", "head"]}), PLACES)
    assert [each.nodes for each in found.layers] == [("conv1", "relu"), ("head",)]
    assert found.data()["precisions"] == {}


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"Layers": [3, {"Inputs": 4}]}'])
def test_what_is_not_understood_is_left_out(text: str) -> None:
    found = Inspection.of(text, PLACES)
    assert found.data()["precisions"] == {} and found.alone() == []
    assert len(found.summary()) == 3
