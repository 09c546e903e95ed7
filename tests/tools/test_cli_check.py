"""`burnish check`: faults planted one by one are found, and graphs without a fault give nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import Command
from onnx import TensorProto as Types
from onnx import helper, numpy_helper
from torch import nn

import burnish as api

Nodes = list[onnx.NodeProto]


class Draft:
    """An ONNX model under construction: every fault is one change of it."""

    def __init__(self) -> None:
        self.nodes: Nodes = []
        self.inputs = {"x": (Types.FLOAT, [2, 16, 8, 8])}
        self.outputs: dict[str, tuple[int, list[int | str] | None]] = {"y": (Types.FLOAT, None)}
        self.constants: dict[str, np.ndarray] = {}
        self.domains = {"": 20}

    def add(self, operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> None:
        name = f"n{len(self.nodes)}"
        node = helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes)
        node.metadata_props.add(key="burnish.module", value=f"stage.{name}")
        self.nodes.append(node)

    def hold(self, name: str, value: object, dtype: type = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype=dtype)
        return name

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, *each) for name, each in self.inputs.items()],
            [helper.make_tensor_value_info(name, *each) for name, each in self.outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def clean(draft: Draft) -> None:
    draft.add("Relu", ["x"], ["y"])


def quantized(
    draft: Draft,
    *,
    point: int = 0,
    dtype: type = np.int8,
    axis: int = 0,
    scales: int = 32,
    scale: float = 0.1,
    weight_pair: bool = True,
    input_pair: bool = True,
) -> None:
    """A convolution of 16 to 32 channels with its pairs, and one number of them wrong."""
    integers = np.ones((32, 16, 3, 3))
    if input_pair:
        draft.hold("s", scale), draft.hold("z", point, dtype)
        draft.add("QuantizeLinear", ["x", "s", "z"], ["xq"])
        draft.add("DequantizeLinear", ["xq", "s", "z"], ["xd"])
    if weight_pair:
        draft.hold("wq", integers, np.int8), draft.hold("ws", np.full(scales, 0.1))
        draft.add("DequantizeLinear", ["wq", "ws", draft.hold("wz", np.zeros(scales), np.int8)], ["w"], axis=axis)
    else:
        draft.hold("w", integers)
    draft.add("Conv", ["xd" if input_pair else "x", "w"], ["y"])


def asymmetric(draft: Draft) -> None:
    quantized(draft, point=3)


def unsigned(draft: Draft) -> None:
    quantized(draft, dtype=np.uint8)


def wrong_axis(draft: Draft) -> None:
    quantized(draft, axis=1, scales=16)


def wrong_count(draft: Draft) -> None:
    quantized(draft, axis=0, scales=16)


def no_input_pair(draft: Draft) -> None:
    quantized(draft, input_pair=False)


def no_weight_pair(draft: Draft) -> None:
    quantized(draft, weight_pair=False)


def negative_scale(draft: Draft) -> None:
    quantized(draft, scale=-0.1)


def channel_activation(draft: Draft) -> None:
    draft.hold("s", np.full(16, 0.1)), draft.hold("z", np.zeros(16), np.int8)
    draft.add("QuantizeLinear", ["x", "s", "z"], ["xq"], axis=1)
    draft.add("DequantizeLinear", ["xq", "s", "z"], ["xd"], axis=1)
    draft.add("MaxPool", ["xd"], ["y"], kernel_shape=[2, 2])


def quantized_bias(draft: Draft) -> None:
    quantized(draft)
    draft.hold("bq", np.ones(32), np.int32), draft.hold("bs", np.full(32, 0.01))
    draft.add("DequantizeLinear", ["bq", "bs"], ["b"], axis=0)
    draft.nodes.insert(3, draft.nodes.pop())
    draft.nodes[4].input.append("b")


def integers_without_dequantize(draft: Draft) -> None:
    draft.hold("s", 0.1), draft.hold("z", 0, np.int8)
    draft.add("QuantizeLinear", ["x", "s", "z"], ["xq"])
    draft.add("Cast", ["xq"], ["y"], to=Types.FLOAT)


def range_at_run_time(draft: Draft) -> None:
    draft.inputs["s"] = (Types.FLOAT, [])
    draft.hold("z", 0, np.int8)
    draft.add("QuantizeLinear", ["x", "s", "z"], ["xq"])
    draft.add("DequantizeLinear", ["xq", "s", "z"], ["xd"])
    draft.add("Relu", ["xd"], ["y"])


def pair_before_softmax(draft: Draft) -> None:
    draft.hold("s", 0.1), draft.hold("z", 0, np.int8)
    draft.add("QuantizeLinear", ["x", "s", "z"], ["xq"])
    draft.add("DequantizeLinear", ["xq", "s", "z"], ["xd"])
    draft.add("Softmax", ["xd"], ["y"])


def joined_scales(draft: Draft) -> None:
    draft.hold("z", 0, np.int8)
    for name, scale in (("a", 0.1), ("b", 0.2)):
        draft.hold(f"s{name}", scale)
        draft.add("QuantizeLinear", ["x", f"s{name}", "z"], [f"{name}q"])
        draft.add("DequantizeLinear", [f"{name}q", f"s{name}", "z"], [f"{name}d"])
    draft.add("Concat", ["ad", "bd"], ["y"], axis=1)


def sum_of_two_pairs(draft: Draft) -> None:
    draft.hold("s", 0.1), draft.hold("z", 0, np.int8), draft.hold("w", np.ones((16, 16, 1, 1)))
    draft.add("Conv", ["x", "w"], ["c"])
    for name in ("c", "x"):
        draft.add("QuantizeLinear", [name, "s", "z"], [f"{name}q"])
        draft.add("DequantizeLinear", [f"{name}q", "s", "z"], [f"{name}d"])
    draft.add("Add", ["cd", "xd"], ["y"])


def contrib(draft: Draft) -> None:
    draft.domains["com.microsoft"] = 1
    draft.add("QuickGelu", ["x"], ["y"], domain="com.microsoft")


def plugin(draft: Draft) -> None:
    draft.domains["my.plugins"] = 1
    draft.add("Relu7", ["x"], ["y"], domain="my.plugins")


def unknown_operator(draft: Draft) -> None:
    draft.add("Frobnicate", ["x"], ["y"])


def unknown_attribute(draft: Draft) -> None:
    draft.add("Relu", ["x"], ["y"], alpha=0.1)


def refused_operator(draft: Draft) -> None:
    draft.add("Det", ["x"], ["y"])


def dynamic_quantization(draft: Draft) -> None:
    draft.add("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    draft.add("DequantizeLinear", ["q", "s", "z"], ["d"])
    draft.add("Relu", ["d"], ["y"])


def integer_convolution(draft: Draft) -> None:
    draft.inputs["x"] = (Types.INT8, [2, 16, 8, 8])
    draft.hold("w", np.ones((8, 16, 1, 1)), np.int8)
    draft.add("ConvInteger", ["x", "w"], ["i"])
    draft.add("Cast", ["i"], ["y"], to=Types.FLOAT)


def double_input(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.DOUBLE, [2, 16]), (Types.DOUBLE, None)
    clean(draft)


def double_constant(draft: Draft) -> None:
    draft.outputs["y"] = (Types.DOUBLE, None)
    draft.hold("k", [1.0], np.float64)
    draft.add("Relu", ["k"], ["y"])


def double_cast(draft: Draft) -> None:
    draft.add("Cast", ["x"], ["d"], to=Types.DOUBLE)
    draft.add("Relu", ["d"], ["e"])
    draft.add("Cast", ["e"], ["y"], to=Types.FLOAT)


def narrow_integers(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.INT16, [2, 16]), (Types.INT16, None)
    draft.add("Transpose", ["x"], ["y"])


def unsigned_inside(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.UINT8, [2, 16]), (Types.UINT8, None)
    draft.add("Transpose", ["x"], ["y"])


def integer_clip(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.INT64, [2, 16]), (Types.INT64, None)
    draft.add("Clip", ["x", draft.hold("least", 0, np.int64)], ["y"])


def integer_nonzero(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.INT64, [2, 16]), (Types.INT64, None)
    draft.add("NonZero", ["x"], ["y"])


def mixed_types(draft: Draft) -> None:
    draft.inputs["i"] = (Types.INT64, [2, 16, 8, 8])
    draft.add("Add", ["x", "i"], ["y"])


def no_profile(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, ["B", 16])  # type: ignore[assignment,list-item]
    clean(draft)


def nameless_size(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [None, 16])  # type: ignore[assignment,list-item]
    clean(draft)


def shape_input(draft: Draft) -> None:
    draft.inputs["n"] = (Types.INT64, [4])
    draft.add("Reshape", ["x", "n"], ["y"])


def float_shape_input(draft: Draft) -> None:
    draft.inputs["n"] = (Types.FLOAT, [4])
    draft.add("Cast", ["n"], ["m"], to=Types.INT64)
    draft.add("Reshape", ["x", "m"], ["y"])


def long_shape(draft: Draft) -> None:
    draft.add("Split", ["x", draft.hold("sizes", [1] * 65, np.int64)], [f"p{i}" for i in range(65)], axis=0)
    draft.inputs["x"] = (Types.FLOAT, [65, 2])
    draft.add("Relu", ["p0"], ["y"])


def state(draft: Draft) -> None:
    draft.hold("count", np.zeros((2, 16, 8, 8)))
    draft.inputs["count"] = (Types.FLOAT, [2, 16, 8, 8])
    draft.add("Add", ["x", "count"], ["y"])


def newer_opset(draft: Draft) -> None:
    draft.domains[""] = 25
    clean(draft)


def older_opset(draft: Draft) -> None:
    draft.domains[""] = 8
    clean(draft)


def transform(draft: Draft) -> None:
    draft.add("DFT", ["x", "", draft.hold("axis", 1, np.int64)], ["y"])
    draft.inputs["x"] = (Types.FLOAT, [2, 16, 1])


def attention_with_a_flat_mask(draft: Draft) -> None:
    draft.domains[""] = 23
    draft.inputs["m"] = (Types.FLOAT, [8, 8])
    draft.add("Attention", ["x", "x", "x", "m"], ["y"])


def uneven_pads(draft: Draft) -> None:
    draft.hold("w", np.ones((16, 16, 3, 3))), draft.hold("o", np.zeros((2, 18, 7, 7)))
    draft.add("DeformConv", ["x", "w", "o"], ["y"], kernel_shape=[3, 3], pads=[0, 0, 1, 1])


def uneven_directions(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [3, 2, 4])
    draft.hold("w", np.ones((2, 20, 4))), draft.hold("r", np.ones((2, 20, 5)))
    names = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Relu"]
    draft.add("LSTM", ["x", "w", "r"], ["y"], direction="bidirectional", hidden_size=5, activations=names)


def dynamic_identity(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, ["B", 16])  # type: ignore[assignment,list-item]
    draft.add("EyeLike", ["x"], ["y"])


def dynamic_hardmax(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [2, "N"])  # type: ignore[assignment,list-item]
    draft.add("Hardmax", ["x"], ["y"])


def volume_samples(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [2, 3, 4, 4, 4])
    draft.add("GridSample", ["x", draft.hold("g", np.zeros((2, 4, 4, 4, 3)))], ["y"])


def _loop(draft: Draft, carried: list[str | int], collects: bool, operator: str = "Relu") -> None:
    """A loop over x with one round for each of "n", which carries a value and perhaps collects one."""
    ends = [
        helper.make_tensor_value_info("go_on", Types.BOOL, []),
        helper.make_tensor_value_info("b", Types.FLOAT, carried),
        *([helper.make_tensor_value_info("c", Types.FLOAT, None)] if collects else []),
    ]
    starts = [
        helper.make_tensor_value_info("i", Types.INT64, []),
        helper.make_tensor_value_info("go", Types.BOOL, []),
        helper.make_tensor_value_info("a", Types.FLOAT, [2, "N"]),
    ]
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node(operator, ["a", *(["a"] if operator == "Concat" else [])], ["b"], **(
            {"axis": 0} if operator == "Concat" else {}
        )),
        *([helper.make_node("Neg", ["a"], ["c"])] if collects else []),
    ]  # fmt: skip
    body = helper.make_graph(nodes, "body", starts, ends)
    draft.inputs["x"] = (Types.FLOAT, [2, "N"])  # type: ignore[assignment,list-item]
    if collects:
        draft.outputs["z"] = (Types.FLOAT, None)
    draft.add("Loop", ["n", draft.hold("go_in", True, np.bool_), "x"], ["y", *(["z"] if collects else [])], body=body)


def collecting_loop(draft: Draft) -> None:
    draft.inputs["n"] = (Types.INT64, [])
    _loop(draft, [2, "N"], collects=True)


def growing_loop(draft: Draft) -> None:
    draft.hold("n", 3, np.int64)
    _loop(draft, [4, "N"], collects=False, operator="Concat")


def dilated_pool(draft: Draft) -> None:
    draft.add("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])


def pool_indices(draft: Draft) -> None:
    draft.outputs["i"] = (Types.INT64, None)
    draft.add("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])


def cubic_resize(draft: Draft) -> None:
    draft.add("Resize", ["x", "", draft.hold("k", [1, 1, 2, 2])], ["y"], mode="cubic")


def antialiased_resize(draft: Draft) -> None:
    draft.add("Resize", ["x", "", draft.hold("k", [1, 1, 0.5, 0.5])], ["y"], mode="linear", antialias=1)


def scatter_reduction(draft: Draft) -> None:
    draft.add("ScatterND", ["x", draft.hold("i", [[0]], np.int64), "u"], ["y"], reduction="add")
    draft.hold("u", np.zeros((1, 16, 8, 8)))


def unsorted_topk(draft: Draft) -> None:
    draft.outputs["i"] = (Types.INT64, None)
    draft.add("TopK", ["x", draft.hold("k", [2], np.int64)], ["y", "i"], sorted=0)


def wide_topk(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["i"] = (Types.FLOAT, [2, 5000]), (Types.INT64, None)
    draft.add("TopK", ["x", draft.hold("k", [4000], np.int64)], ["y", "i"])


def training_dropout(draft: Draft) -> None:
    draft.add("Dropout", ["x", draft.hold("p", 0.5), draft.hold("t", True, np.bool_)], ["y"])


def axes_at_run_time(draft: Draft) -> None:
    draft.inputs["axes"] = (Types.INT64, [1])
    draft.add("ReduceSum", ["x", "axes"], ["y"])


def squeeze_all(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [2, 1])
    draft.add("Squeeze", ["x"], ["y"])


def branches_of_two_ranks(draft: Draft) -> None:
    draft.inputs["c"] = (Types.BOOL, [])
    branches = {}
    for name, node in (
        ("then_branch", helper.make_node("Relu", ["x"], ["a"])),
        ("else_branch", helper.make_node("Flatten", ["x"], ["b"])),
    ):
        end = helper.make_tensor_value_info(node.output[0], Types.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [end])
    draft.add("If", ["c"], ["y"], **branches)


def refused_in_a_branch(draft: Draft) -> None:
    draft.inputs["c"] = (Types.BOOL, [])
    branches = {}
    for name, operator, end in (("then_branch", "Mish", "a"), ("else_branch", "Det", "b")):
        ends = [helper.make_tensor_value_info(end, Types.FLOAT, None)]
        node = helper.make_node(operator, ["x"], [end], name=f"inner_{operator}")
        branches[name] = helper.make_graph([node], name, [], ends)
    draft.add("If", ["c"], ["y"], **branches)


def long_layer_norm(draft: Draft) -> None:
    draft.outputs["m"] = (Types.FLOAT, None)
    draft.add("LayerNormalization", ["x", draft.hold("g", np.ones(8))], ["y", "m"])


FAULTS: list[tuple[Callable[[Draft], None], str, str, str]] = [
    # fault, rule, node, part of the reason
    (asymmetric, "quantization", "n0", "the zero point is 3"),
    (unsigned, "quantization", "n0", "the integers are uint8"),
    (wrong_axis, "quantization", "n2", "not along the output channels of n3"),
    (wrong_count, "quantization", "n2", "16 scales along dimension 0, which has 32 channels"),
    (no_input_pair, "quantization", "n1", "no pair stands before its input"),
    (no_weight_pair, "quantization", "n2", "no pair stands before its weight"),
    (negative_scale, "quantization", "n0", "a scale is not positive"),
    (channel_activation, "quantization", "n0", "an activation with a scale for each channel"),
    (quantized_bias, "quantization", "n4", "dequantizes int32"),
    (integers_without_dequantize, "quantization", "n0", "go to n1 (Cast) without a DequantizeLinear"),
    (range_at_run_time, "quantization", "n0", "the scale is found at run time"),
    (pair_before_softmax, "fusion", "n1", "no int8 kernel for what reads it (Softmax)"),
    (joined_scales, "fusion", "n4", "different scales"),
    (sum_of_two_pairs, "fusion", "n5", "only the shortcut"),
    (contrib, "operator", "n0", "ONNX Runtime's own operator"),
    (plugin, "operator", "n0", "TensorRT needs a plugin"),
    (unknown_operator, "operator", "n0", "has no such operator"),
    (unknown_attribute, "onnx", "n0", "Unrecognized attribute: alpha"),
    (refused_operator, "operator", "n0", "does not support it"),
    (dynamic_quantization, "operator", "n0", "does not support it"),
    (integer_convolution, "operator", "n0", "does not support it"),
    (double_input, "type", "x", "no float64"),
    (double_constant, "type", "k", "no float64"),
    (double_cast, "type", "n0", "no float64"),
    (narrow_integers, "type", "x", "no tensors of int16"),
    (unsigned_inside, "type", "n0", "not for uint8"),
    (integer_clip, "type", "n0", "not for int64"),
    (integer_nonzero, "type", "n0", "not for int64"),
    (mixed_types, "onnx", "n0", "inconsistent type"),
    (no_profile, "profile", "B", "dimension 0 of x"),
    (nameless_size, "profile", "x.0", "dimension 0 of x"),
    (shape_input, "profile", "n", "n0 (Reshape) takes sizes from it"),
    (float_shape_input, "shape-tensor", "n", "must be int32 or int64, not float32"),
    (long_shape, "shape-tensor", "n0", "65 sizes"),
    (state, "state", "count", "an update is lost"),
    (older_opset, "opset", "opset", "opset 8; TensorRT 11.0 reads 9 to 24"),
    (newer_opset, "opset", "opset", "opset 25; TensorRT 11.0 reads 9 to 24"),
    (transform, "operator", "n0", "TensorRT parses it from 11.2 on, not 11.0"),
    (attention_with_a_flat_mask, "shape", "n0", "attn_mask has 2 dimensions; TensorRT takes 4"),
    (uneven_pads, "attribute", "n0", "pads is 0, 0, 1, 1; TensorRT wants its two halves to be equal"),
    (uneven_directions, "attribute", "n0", "activations is Sigmoid, Tanh, Tanh, Sigmoid, Tanh, Relu"),
    (dynamic_identity, "shape", "n0", "the sizes of its input must be known"),
    (dynamic_hardmax, "shape", "n0", "the size of its input along the axis must be known"),
    (volume_samples, "shape", "n0", "X has 5 dimensions; TensorRT takes 4"),
    (collecting_loop, "shape", "n0", "how many rounds there are is not known"),
    (growing_loop, "shape", "n0", "what it carries as 'a' changes its shape"),
    (dilated_pool, "attribute", "n0", "dilations is [2, 2]"),
    (pool_indices, "output", "n0", "does not give the result Indices"),
    (cubic_resize, "attribute", "n0", "mode is cubic"),
    (antialiased_resize, "attribute", "n0", "antialias is 1"),
    (scatter_reduction, "attribute", "n0", "reduction is add"),
    (unsorted_topk, "attribute", "n0", "sorted is 0"),
    (wide_topk, "input", "n0", "K is 4000; TensorRT takes less than 3840"),
    (training_dropout, "input", "n0", "training_mode must be 0"),
    (axes_at_run_time, "input", "n0", "axes must be known when the engine is built"),
    (squeeze_all, "input", "n0", "TensorRT needs the input axes"),
    (branches_of_two_ranks, "shape", "n0", "4 dimensions in one branch and 2 in the other"),
    (refused_in_a_branch, "operator", "inner_Det", "does not support it"),
    (long_layer_norm, "output", "n0", "does not give the result Mean"),
]


def write(folder: Path, plant: Callable[[Draft], None]) -> Path:
    draft = Draft()
    plant(draft)
    file = folder / "model.onnx"
    onnx.save(draft.model(), file)
    return file


@pytest.mark.parametrize(("plant", "rule", "node", "reason"), FAULTS, ids=[each[0].__name__ for each in FAULTS])
def test_a_planted_fault_is_found(
    burnish: Command, tmp_path: Path, plant: Callable[[Draft], None], rule: str, node: str, reason: str
) -> None:
    result = burnish("check", write(tmp_path, plant), "--target", "tensorrt-11", "--json")
    assert result.exit_code == 1, result.stdout
    found = json.loads(result.stdout)["findings"]
    hits = [each for each in found if each["rule"] == rule and each["node"] == node and reason in each["reason"]]
    assert len(hits) == 1, found
    if node.startswith("n") and node != "n":
        assert hits[0]["module"] == f"stage.{node}"


def whole_pair(draft: Draft) -> None:
    quantized(draft)


def dynamic_batch(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, ["B", 16, 8, "2*B"])  # type: ignore[assignment,list-item]
    clean(draft)


def shape_of_the_input(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, ["B", 16])  # type: ignore[assignment,list-item]
    draft.add("Shape", ["x"], ["s"])
    draft.add("Expand", ["x", "s"], ["e"])
    draft.add("ReduceSum", ["e", draft.hold("axes", [1], np.int64)], ["y"])


def nonzero(draft: Draft) -> None:
    draft.add("Greater", ["x", draft.hold("k", 0.0)], ["m"])
    draft.add("NonZero", ["m"], ["i"])
    draft.add("Transpose", ["i"], ["t"])
    draft.add("GatherND", ["x", "t"], ["y"])


def transposed_weight(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [2, 16])
    draft.hold("s", 0.1), draft.hold("z", 0, np.int8)
    draft.add("QuantizeLinear", ["x", "s", "z"], ["xq"])
    draft.add("DequantizeLinear", ["xq", "s", "z"], ["xd"])
    draft.hold("wq", np.ones((4, 16)), np.int8), draft.hold("ws", np.full(4, 0.1))
    draft.add("DequantizeLinear", ["wq", "ws", draft.hold("wz", np.zeros(4), np.int8)], ["w"], axis=0)
    draft.add("Transpose", ["w"], ["t"])
    draft.add("MatMul", ["xd", "t"], ["y"])


def both_branches(draft: Draft) -> None:
    draft.inputs["c"] = (Types.BOOL, [])
    branches = {}
    for name, operator, end in (("then_branch", "Relu", "a"), ("else_branch", "Neg", "b")):
        ends = [helper.make_tensor_value_info(end, Types.FLOAT, None)]
        branches[name] = helper.make_graph([helper.make_node(operator, ["x"], [end])], name, [], ends)
    draft.add("If", ["c"], ["y"], **branches)


def one_direction(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, [3, 2, 4])
    draft.hold("w", np.ones((1, 20, 4))), draft.hold("r", np.ones((1, 20, 5)))
    draft.add("LSTM", ["x", "w", "r"], ["y"], hidden_size=5, activations=["Sigmoid", "Tanh", "Relu"])


def dynamic_hardmax_beside_its_axis(draft: Draft) -> None:
    draft.inputs["x"] = (Types.FLOAT, ["B", 16])  # type: ignore[assignment,list-item]
    draft.add("Hardmax", ["x"], ["y"], axis=1)


def fixed_loop(draft: Draft) -> None:
    draft.hold("n", 3, np.int64)
    # A size without a name may be the same as one with a name.
    _loop(draft, [2, None], collects=True)  # type: ignore[list-item]


def sum_of_two_pairs_beside_a_norm(draft: Draft) -> None:
    # The convolution is read by another node too: no kernel joins it with the sum.
    sum_of_two_pairs(draft)
    draft.outputs["e"] = (Types.FLOAT, None)
    draft.add("Softmax", ["c"], ["e"])


CLEAN = [
    (clean, []),
    (whole_pair, []),
    (dynamic_batch, ["--profile", "B=1:4:8"]),
    (shape_of_the_input, ["--profile", "B=4"]),
    (shape_input, ["--profile", "n=1:8:16"]),
    (nonzero, []),
    (transposed_weight, []),
    (both_branches, []),
    (sum_of_two_pairs_beside_a_norm, []),
    (one_direction, []),
    (dynamic_hardmax_beside_its_axis, ["--profile", "B=4"]),
    (fixed_loop, ["--profile", "N=4"]),
]


@pytest.mark.parametrize(("plant", "options"), CLEAN, ids=[each[0].__name__ for each in CLEAN])
def test_a_graph_without_a_fault_gives_nothing(
    burnish: Command, tmp_path: Path, plant: Callable[[Draft], None], options: list[str]
) -> None:
    result = burnish("check", write(tmp_path, plant), "--target", "tensorrt-11", *options, "--json")
    assert json.loads(result.stdout)["findings"] == []
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("target", "fix"),
    [("opset-18", "onnx{dialect=standard,opset=18}"), ("opset-17", "burnish writes opsets 18 to 23")],
)
def test_older_opsets_are_advised_where_they_are_written(
    burnish: Command, tmp_path: Path, target: str, fix: str
) -> None:
    result = burnish("check", write(tmp_path, gelu), "--target", target, "--json")
    (found,) = json.loads(result.stdout)["findings"]
    assert fix in found["fix"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "opset-20", "opset-25"])
@pytest.mark.parametrize("plant", [clean, whole_pair, nonzero, both_branches], ids=lambda each: each.__name__)
def test_other_targets_take_clean_graphs(
    burnish: Command, tmp_path: Path, plant: Callable[[Draft], None], target: str
) -> None:
    result = burnish("check", write(tmp_path, plant), "--target", target)
    assert result.exit_code == 0, result.stdout
    assert f"nothing that {target} refuses" in result.stdout


def brain_relu(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.BFLOAT16, [2, 3]), (Types.BFLOAT16, None)
    draft.add("Relu", ["x"], ["y"])


def gelu(draft: Draft) -> None:
    draft.add("Gelu", ["x"], ["y"])


def wide_integers(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.INT64, [2, 3]), (Types.INT64, None)
    draft.add("Add", ["x", draft.hold("k", [1 << 40], np.int64)], ["y"])


@pytest.mark.parametrize(
    ("target", "plant", "rule", "node", "reason"),
    [
        ("onnxruntime", brain_relu, "operator", "n0", "Could not find an implementation for Relu"),
        ("onnxruntime", unknown_operator, "operator", "n0", "has no such operator"),
        ("onnxruntime", plugin, "operator", "n0", "my.plugins"),
        ("openvino", contrib, "operator", "n0", "not part of the standard"),
        ("openvino", refused_operator, "operator", "n0", "no conversion for Det"),
        ("openvino", double_input, "type", "x", "computes float64 in float32"),
        ("openvino", wide_integers, "type", "n0", "does not fit 32 bits"),
        ("opset-18", gelu, "operator", "n0", "came with opset 20"),
        ("opset-25", contrib, "operator", "n0", "not part of the standard"),
        ("opset-25", mixed_types, "onnx", "n0", "inconsistent type"),
    ],
)
def test_faults_for_other_targets(
    burnish: Command,
    tmp_path: Path,
    target: str,
    plant: Callable[[Draft], None],
    rule: str,
    node: str,
    reason: str,
) -> None:
    result = burnish("check", write(tmp_path, plant), "--target", target, "--json")
    assert result.exit_code == 1, result.stdout
    found = json.loads(result.stdout)["findings"]
    assert [each for each in found if each["rule"] == rule and each["node"] == node and reason in each["reason"]], found


@pytest.mark.parametrize(("release", "count"), [("10.13", 1), ("10.14", 0), ("11", 0)])
def test_a_newer_release_takes_more(burnish: Command, tmp_path: Path, release: str, count: int) -> None:
    def attention(draft: Draft) -> None:
        draft.domains[""] = 23
        draft.inputs["x"] = (Types.FLOAT, [2, 4, 8, 8])
        draft.add("Attention", ["x", "x", "x"], ["y"])

    result = burnish("check", write(tmp_path, attention), "--target", f"tensorrt-{release}", "--json")
    found = json.loads(result.stdout)["findings"]
    assert len(found) == count
    assert all("from 10.14 on" in each["reason"] and "opset=20" in each["fix"] for each in found)


@pytest.mark.parametrize("plant", [transform, volume_samples], ids=lambda each: each.__name__)
def test_11_2_takes_transforms_and_samples_of_volumes(
    burnish: Command, tmp_path: Path, plant: Callable[[Draft], None]
) -> None:
    file = write(tmp_path, plant)
    assert burnish("check", file, "-t", "tensorrt-11.1").exit_code == 1
    assert burnish("check", file, "-t", "tensorrt-11.2").exit_code == 0


def test_squeeze_without_axes_is_taken_from_11_5_on(burnish: Command, tmp_path: Path) -> None:
    file = write(tmp_path, squeeze_all)
    assert burnish("check", file, "-t", "tensorrt-11.4").exit_code == 1
    assert burnish("check", file, "-t", "tensorrt-11.5").exit_code == 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.relu(self.stem(x)).mean((2, 3)))
        return result


def test_the_table_names_modules_and_what_mends(burnish: Command, tmp_path: Path) -> None:
    x = torch.randn(2, 16, 8, 8)
    compiled = api.compile(Net(), "default,quantize", inputs=(x,), calibration=[(x,)], progress=False)
    compiled.save(tmp_path / "net.onnx")
    result = burnish("check", tmp_path / "net.onnx", "--target", "tensorrt-11")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rule", "node", "operator", "reason", "mended", "by", "module"]
    assert any("uint8" in line and "`onnx{dialect=tensorrt}`" in line and "stem" in line for line in lines)


def test_what_burnish_quantizes_for_tensorrt_passes(burnish: Command, tmp_path: Path) -> None:
    x = torch.randn(2, 16, 8, 8)
    backend = "onnx{dialect=tensorrt}"
    compiled = api.compile(Net(), "default,quantize", inputs=(x,), calibration=[(x,)], backend=backend, progress=False)
    compiled.save(tmp_path / "net.onnx")
    assert any(each.op_type == "QuantizeLinear" for each in onnx.load(tmp_path / "net.onnx").graph.node)
    result = burnish("check", tmp_path / "net.onnx", "--target", "tensorrt-11", "--profile", "B=1:2:8")
    assert result.exit_code == 0, result.stdout


@pytest.mark.parametrize("target", ["tensorrt-11", "tensorrt-10.12", "onnxruntime", "openvino", "opset-20"])
def test_a_program_is_lowered_for_the_target(burnish: Command, saved: Path, target: str) -> None:
    result = burnish("check", saved, "--target", target, "--json")
    assert json.loads(result.stdout) == {"file": str(saved), "target": target, "findings": []}
    assert result.exit_code == 0


def test_the_example_inputs_of_a_program_are_its_profile(burnish: Command, saved: Path, tmp_path: Path) -> None:
    text = "# burnish 1\ngraph main(%x: f32[B, 4]) {\n  %a = aten.relu(%x) : f32[B, 4]\n  return %a\n}\n"
    program = dataclasses.replace(api.Program.parse(text), samples={})
    program.save(tmp_path / "bare.burnish")
    result = burnish("check", tmp_path / "bare.burnish", "-t", "tensorrt-11", "--json")
    assert [each["rule"] for each in json.loads(result.stdout)["findings"]] == ["profile"]
    assert burnish("check", tmp_path / "bare.burnish", "-t", "tensorrt-11", "--profile", "B=1:2:4").exit_code == 0
    assert burnish("check", saved, "-t", "tensorrt-11").exit_code == 0


def test_a_bundle_has_its_graph_and_its_profile(burnish: Command, tmp_path: Path) -> None:
    file, dims = tmp_path / "gelu.trtbundle", ({0: torch.export.Dim("B")},)
    with warnings.catch_warnings():
        # No engine can be built here.
        warnings.simplefilter("ignore")
        api.compile(nn.GELU(), inputs=(torch.randn(2, 5),), dynamic_shapes=dims, backend="tensorrt").save(file)
    assert burnish("check", file, "-t", "tensorrt-10.12").exit_code == 0
    result = burnish("check", file, "-t", "tensorrt-11", "--profile", "C=1:2:3")
    assert result.exit_code == 2 and "a profile is of 'C'" in result.stderr
    result = burnish("check", file, "-t", "opset-19", "--json")
    (found,) = json.loads(result.stdout)["findings"]
    assert (found["rule"], found["operator"], result.exit_code) == ("operator", "Gelu", 1)
    file.write_bytes(file.read_bytes()[:200])
    assert burnish("check", file, "-t", "tensorrt-11").exit_code == 2


def test_what_onnx_cannot_express_of_a_program_is_a_finding(burnish: Command, tmp_path: Path) -> None:
    class Median(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.median(-1).values

    api.capture(Median(), (torch.randn(2, 5),)).save(tmp_path / "median.burnish")
    result = burnish("check", tmp_path / "median.burnish", "-t", "tensorrt-11", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["findings"]
    assert found["rule"] == "onnx" and "neither a translation" in found["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.onnx", "-t", "tensorrt-11"], "missing.onnx: no such file"),
        ([".", "-t", "tensorrt-11"], ".: a folder, not a file"),
        (["{file}", "-t", "tensorrt-8.6"], "nothing is known of TensorRT 8.6: there are 10.12,"),
        (["{file}", "-t", "tensorflow"], "no target is called 'tensorflow'; there are tensorrt-10.12,"),
        (["{file}", "-t", "opset-2"], "no target is called 'opset-2'"),
        (["{file}", "-t", "opset-99"], "no target is called 'opset-99'"),
        (["{file}", "-t", "tensorrt-11", "--profile", "B"], "is no range: write 'B=1:8:32'"),
        (["{file}", "-t", "tensorrt-11", "--profile", "B=8:4:2"], "must not fall"),
        (
            ["{file}", "-t", "tensorrt-11", "--profile", "B=1:8:9223372036854775808"],
            "must be 9223372036854775807 at the most",
        ),
        (["{file}", "-t", "tensorrt-11", "--profile", "B=4", "--profile", "B=8"], "B has a range already"),
        (
            ["{file}", "-t", "tensorrt-11", "--profile", "C=1:2:3"],
            "a profile is of 'C', and the graph has no such dynamic size; there are B",
        ),
        (["{file}", "-t", "onnxruntime", "--profile", "B=1:2:3"], "only TensorRT has profiles"),
        (["{folder}/foreign.onnx", "-t", "tensorrt-11"], "truncated, or not an ONNX file"),
        (["{folder}/broken.onnx", "-t", "tensorrt-11"], "node 'n0' reads 'nowhere', which nothing before it makes"),
        (["{folder}/twice.onnx", "-t", "tensorrt-11"], "node 'n1' makes 'y', which is there already"),
        (["{folder}/stages.burnish", "-t", "tensorrt-11"], "a program of 2 stages: `burnish compile"),
        (["{folder}/other.txt", "-t", "tensorrt-11"], "the ending must be .onnx, .burnish or .trtbundle"),
        (["{folder}/net.burnish", "-t", "opset-12"], "a program is lowered to opsets 18 to 23"),
    ],
)
def test_what_cannot_be_checked_is_status_2(
    burnish: Command, saved: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    file = write(tmp_path, no_profile)
    (tmp_path / "foreign.onnx").write_bytes(b"something else")
    (tmp_path / "other.txt").write_text("")
    (tmp_path / "net.burnish").write_bytes(saved.read_bytes())
    draft = Draft()
    draft.add("Relu", ["nowhere"], ["y"])
    onnx.save(draft.model(), tmp_path / "broken.onnx")
    draft = Draft()
    draft.add("Relu", ["x"], ["y"])
    draft.add("Neg", ["x"], ["y"])
    onnx.save(draft.model(), tmp_path / "twice.onnx")
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    stages = api.Pipeline.parse("canonicalize,partition{stages=2}")
    stages.run(api.capture(layers, (torch.randn(2, 4),)), api.Context(progress=False)).save(tmp_path / "stages.burnish")
    result = burnish("check", *[each.format(file=file, folder=tmp_path) for each in options])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert result.stdout == ""


def test_weights_in_a_file_beside_are_read(burnish: Command, tmp_path: Path) -> None:
    draft = Draft()
    asymmetric(draft)
    options = {"save_as_external_data": True, "location": "model.data", "size_threshold": 0}
    onnx.save_model(draft.model(), tmp_path / "model.onnx", **options)
    result = burnish("check", tmp_path / "model.onnx", "-t", "tensorrt-11")
    assert result.exit_code == 1
    assert "the zero point is 3" in result.stdout
    (tmp_path / "model.data").unlink()
    assert burnish("check", tmp_path / "model.onnx", "-t", "tensorrt-11").exit_code == 2


def test_local_functions_are_looked_into(burnish: Command, tmp_path: Path) -> None:
    body = [helper.make_node("Det", ["a"], ["b"], name="inside")]
    function = helper.make_function("mine", "Wrapped", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    draft = Draft()
    draft.domains["mine"] = 1
    draft.add("Wrapped", ["x"], ["y"], domain="mine")
    model = draft.model()
    model.functions.append(function)
    onnx.save(model, tmp_path / "model.onnx")
    result = burnish("check", tmp_path / "model.onnx", "-t", "tensorrt-11", "--json")
    (found,) = json.loads(result.stdout)["findings"]
    assert found["operator"] == "Det"


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_never_a_traceback(burnish: Command, tmp_path: Path, seed: int) -> None:
    source = write(tmp_path, quantized_bias).read_bytes()
    generator = np.random.default_rng(seed)
    statuses = set()
    for _ in range(30):
        damaged = bytearray(source)
        for place in generator.integers(len(damaged), size=int(generator.choice([1, 4, 16]))):
            damaged[place] = generator.integers(256)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        # An exception that is no exit comes through.
        statuses.add(burnish("check", tmp_path / "damaged.onnx", "-t", "tensorrt-11").exit_code)
    assert statuses <= {0, 1, 2} and 2 in statuses


def test_without_openvino_it_says_what_is_missing(
    burnish: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from burnish.backends.onnx import openvino_session

    openvino_session._imported.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = burnish("check", write(tmp_path, clean), "-t", "openvino")
    assert result.exit_code == 1
    assert "pip install 'burnish[openvino]'" in result.stderr


def test_text_that_is_not_utf8_is_damage(burnish: Command, tmp_path: Path) -> None:
    file = write(tmp_path, clean)
    file.write_bytes(file.read_bytes().replace(b"Relu", b"\xff\xfelu"))
    result = burnish("check", file, "-t", "tensorrt-11")
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr
