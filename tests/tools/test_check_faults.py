"""`burnish check`: faults planted one by one are found, and graphs without a fault give nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command
from onnx import TensorProto as Types

from tests.planted_faults import (
    Draft,
    antialiased_resize,
    asymmetric,
    attention_with_a_flat_mask,
    axes_at_run_time,
    both_branches,
    brain_relu,
    branches_of_two_ranks,
    channel_activation,
    clean,
    collecting_loop,
    contrib,
    cubic_resize,
    dilated_pool,
    double_cast,
    double_constant,
    double_input,
    dynamic_batch,
    dynamic_hardmax,
    dynamic_hardmax_beside_its_axis,
    dynamic_identity,
    dynamic_quantization,
    fixed_loop,
    float_shape_input,
    gelu,
    growing_loop,
    integer_clip,
    integer_convolution,
    integer_nonzero,
    integers_without_dequantize,
    joined_scales,
    long_layer_norm,
    long_shape,
    mixed_types,
    nameless_size,
    narrow_integers,
    negative_scale,
    newer_opset,
    no_input_pair,
    no_profile,
    no_weight_pair,
    nonzero,
    older_opset,
    one_direction,
    pair_before_softmax,
    plugin,
    pool_indices,
    quantized_bias,
    range_at_run_time,
    refused_in_a_branch,
    refused_operator,
    scatter_reduction,
    shape_input,
    shape_of_the_input,
    squeeze_all,
    state,
    sum_of_two_pairs,
    sum_of_two_pairs_beside_a_norm,
    training_dropout,
    transform,
    transposed_weight,
    uneven_directions,
    uneven_pads,
    unknown_attribute,
    unknown_operator,
    unsigned,
    unsigned_inside,
    unsorted_topk,
    volume_samples,
    whole_pair,
    wide_integers,
    wide_topk,
    write,
    wrong_axis,
    wrong_count,
)

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
