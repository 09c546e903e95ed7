"""ONNX graphs with one fault each that `burnish check` must find, and like ones without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as Types
from onnx import helper, numpy_helper

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


def write(folder: Path, plant: Callable[[Draft], None]) -> Path:
    draft = Draft()
    plant(draft)
    file = folder / "model.onnx"
    onnx.save(draft.model(), file)
    return file


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


def brain_relu(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.BFLOAT16, [2, 3]), (Types.BFLOAT16, None)
    draft.add("Relu", ["x"], ["y"])


def gelu(draft: Draft) -> None:
    draft.add("Gelu", ["x"], ["y"])


def wide_integers(draft: Draft) -> None:
    draft.inputs["x"], draft.outputs["y"] = (Types.INT64, [2, 3]), (Types.INT64, None)
    draft.add("Add", ["x", draft.hold("k", [1 << 40], np.int64)], ["y"])
