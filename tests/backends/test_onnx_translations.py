"""burnish's own operators in ONNX: both dialects, all masks, every result against the reference decomposition."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import burnish
from burnish.compiler.numerics import worst_drift

_HEAD = """\
# burnish 1
constant @w: f32[48, 16]
constant @wsq: f32[16, 16]
constant @w64: f64[48, 16]
constant @b: f32[48]
constant @g: f32[16]
constant @c: f32[7, 2]
constant @bias: f32[1, 4, 7, 7]
constant @k3: f32[16, 4, 3]
constant @t3: f32[4, 8, 3]
constant @b16: f32[16]
constant @table: f32[9, 16]
"""
_INPUTS = (
    "%x: f32[B, 7, 16], %kv: f32[B, 7, 8], %xb: f32[B, 4, 6], %wide: f64[B, 7, 16], %rows: b1[B, 1, 1, 7],"
    " %heads: b1[B, 4, 7, 7], %flat: b1[7, 7], %add: f32[B, 1, 7, 7], %cos: f32[B, 7, 2], %ids: i64[B, 7]"
)
_SELF = "burnish.self_attention(%x, @w, @b{}, heads=4, kv_heads=4, scale=0.5{})"
_MHA = "burnish.multi_head_attention(%x, %x, %x{}, heads=4, kv_heads=4, scale=0.5{})"
_CONV = "burnish.conv_act(%xb, @k3, @b16, stride=[2], padding=[1], dilation=[1], {})"
_CASES = {
    "self": _SELF.format("", ""),
    "self_causal": _SELF.format("", ", causal=True"),
    "self_rows": _SELF.format(", %rows", ""),
    "self_rows_causal": _SELF.format(", %rows", ", causal=True"),
    "self_no_bias": "burnish.self_attention(%x, @w, heads=4, kv_heads=4, scale=0.5)",
    "self_double": "burnish.self_attention(%wide, @w64, heads=4, kv_heads=4, scale=0.5)",
    "self_grouped": "burnish.self_attention(%x, @w, heads=4, kv_heads=1, scale=0.5, causal=True)",
    "heads_mask": _MHA.format(", %heads", ""),
    "flat_mask": _MHA.format(", %flat", ""),
    "constant_bias": _MHA.format(", @bias", ""),
    "added": _MHA.format(", %add", ""),
    "added_causal": _MHA.format(", %add", ", causal=True"),
    "grouped": "burnish.multi_head_attention(%x, %kv, %kv, heads=4, kv_heads=2, scale=0.5)",
    "grouped_causal": "burnish.multi_head_attention(%x, %kv, %kv, heads=2, kv_heads=1, scale=0.5, causal=True)",
    "rotary": "burnish.rotary_embedding(%x, @c, @c, heads=4)",
    "rotary_partial": "burnish.rotary_embedding(%x, @c, @c, heads=2)",
    "rotary_interleaved": "burnish.rotary_embedding(%x, @c, @c, heads=2, interleaved=True)",
    "rotary_by_sample": "burnish.rotary_embedding(%x, %cos, %cos, heads=2)",
    "skip_layer_norm": "burnish.skip_layer_norm(%x, %x, @g, normalized_shape=[16], weight=@g, bias=@g)",
    "skip_layer_norm_plain": "burnish.skip_layer_norm(%x, %x, None, normalized_shape=[16])",
    "skip_layer_norm_double": "burnish.skip_layer_norm(%wide, %wide, None, normalized_shape=[16])",
    "skip_rms_norm": "burnish.skip_rms_norm(%x, %x, None, normalized_shape=[16], weight=@g)",
    "rms_norm": "aten.rms_norm(%x, normalized_shape=[16], weight=@g, eps=1e-06)",
    "rms_norm_plain": "aten.rms_norm(%x, normalized_shape=[7, 16])",
    "embeddings": "burnish.embedding_layer_norm([%ids, %ids], [@table, @table], None, normalized_shape=[16])",
    "quick_gelu": "burnish.quick_gelu(%x)",
    "linear": 'burnish.linear_act(%x, @w, @b, activation="gelu")',
    "linear_residual": 'burnish.linear_act(%x, @wsq, residual=%x, activation="leaky_relu", parameters=[0.1])',
    "conv_relu": _CONV.format('activation="relu"'),
    "conv_clamp": _CONV.format('activation="clamp", parameters=[-0.5, 0.5]'),
    "conv_silu": _CONV.format('activation="silu"'),
    "conv_hardswish": _CONV.format('activation="hardswish"'),
    "conv_hardsigmoid": _CONV.format('activation="hardsigmoid"'),
    "conv_gelu_tanh": _CONV.format('activation="gelu_tanh"'),
    "transposed": "burnish.conv_act(%xb, @t3, None, stride=[2], padding=[1], dilation=[1], transposed=True,"
    ' output_padding=[1], activation="tanh")',
}
_OPTIONS = ("", "{dialect=standard}", "{dialect=standard,opset=23}", "{opset=18}")


def _inputs(batch: int) -> dict[str, torch.Tensor]:
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(batch))
    found = {
        "x": draw(batch, 7, 16),
        "kv": draw(batch, 7, 8),
        "xb": draw(batch, 4, 6),
        "wide": draw(batch, 7, 16).double(),
        "rows": draw(batch, 1, 1, 7) > 0,
        "heads": draw(batch, 4, 7, 7) > 0,
        "flat": draw(7, 7) > 0,
        "add": draw(batch, 1, 7, 7),
        "cos": draw(batch, 7, 2),
        "ids": torch.arange(batch * 7).reshape(batch, 7) % 9,
    }
    # Queries that see no key at all.
    found["rows"][0] = False
    found["heads"][0, 1, 2] = False
    found["flat"][3] = False
    found["add"][0, 0, 2] = -torch.inf
    found["add"][-1, 0, :, 0] = -torch.inf
    return found


def _program(call: str) -> burnish.Program:
    several = "skip_" in call
    lines = [f"  %r = {call}", *(f"  %part{i} = getitem(%r, {i})" for i in range(2 if several else 0))]
    result = "%part0, %part1" if several else "%r"
    return burnish.Program.parse(f"{_HEAD}graph main({_INPUTS}) {{\n{chr(10).join(lines)}\n  return {result}\n}}\n")


@pytest.mark.parametrize("options", _OPTIONS)
@pytest.mark.parametrize("case", _CASES)
def test_translation_agrees_with_decomposition(case: str, options: str) -> None:
    program = _program(_CASES[case])
    compiled = burnish.compile(program, passes="dce", backend=f"onnx{options}")
    for batch in (1, 3):
        inputs = _inputs(batch)
        leaves = torch.utils._pytree.tree_leaves
        assert worst_drift(leaves(compiled(**inputs)), leaves(program(**inputs))) <= 1e-5


@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        ("self", "Attention"),
        ("heads_mask", "MultiHeadAttention"),
        ("grouped_causal", "GroupQueryAttention"),
        ("rotary_partial", "RotaryEmbedding"),
        ("quick_gelu", "QuickGelu"),
    ],
)
def test_dialects(case: str, kernel: str) -> None:
    program = _program(_CASES[case])
    ours = burnish.compile(program, passes="dce", backend="onnx").artifact.model.graph
    assert (kernel, "com.microsoft") in {(node.op_type, node.domain) for node in ours.graph.node}
    standard = burnish.compile(program, passes="dce", backend="onnx{dialect=standard}").artifact.model.graph
    assert {node.domain for node in standard.graph.node} == {""}
    assert {entry.domain for entry in standard.opset_import} == {""}


@pytest.mark.parametrize(
    "case", ["self_rows_causal", "heads_mask", "added", "grouped", "rotary_partial", "skip_rms_norm"]
)
def test_standard_files_run_in_the_reference_runtime(case: str, tmp_path: object) -> None:
    program = _program(_CASES[case])
    path = f"{tmp_path}/m.onnx"
    burnish.compile(program, passes="dce", backend="onnx{dialect=standard}").save(path)
    inputs = _inputs(2)
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load(path))
    found = evaluator.run(None, {name: inputs[name].numpy() for name in evaluator.input_names})
    expected = torch.utils._pytree.tree_leaves(program(**inputs))
    assert worst_drift([torch.from_numpy(each) for each in found], expected) <= 1e-5


@pytest.mark.parametrize(("lowest", "looked_for"), [(-100.0, False), (-1e38, True), (-torch.inf, True)])
def test_hidden_rows_are_looked_for_only_where_there_may_be_some(lowest: float, looked_for: bool) -> None:
    """A mask that is made of finite constants, as Swin's windows have it, hides no row whole."""

    class Windows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.zeros(3, 1, 5, 5).index_fill(3, torch.tensor([1]), lowest))
            self.register_buffer("bias", torch.randn(1, 2, 5, 5).clamp(min=lowest))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = self.mask.expand(x.shape[0], -1, -1, -1, -1).reshape(-1, 1, 5, 5) + self.bias
            x = x.flatten(0, 1)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    x = torch.randn(2, 3, 2, 5, 4)
    compiled = burnish.compile(Windows(), inputs=(x,), backend="onnx")
    assert worst_drift([compiled(x)], [compiled.program(x)]) <= 1e-5
    assert any(node.op_type == "ReduceMax" for node in compiled.artifact.model.graph.graph.node) == looked_for


class _PostNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = self.norm(x + self.linear(x))
        return x


def test_onnx_runtime_leaves_sums_and_norms_apart(tmp_path: Path) -> None:
    model, x = _PostNorm().eval(), torch.randn(2, 3, 8)
    plain, ours = tmp_path / "plain.onnx", tmp_path / "ours.onnx"
    torch.onnx.export(model, (x,), plain, dynamo=True, verbose=False)
    burnish.compile(model, inputs=(x,), backend="onnx").save(ours)
    counts = [_kernels(path) for path in (plain, ours)]
    assert [each["SkipLayerNormalization"] for each in counts] == [2, 0]
    assert [each["LayerNormalization"] for each in counts] == [0, 2]


def _kernels(path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".loaded"))
    onnxruntime.InferenceSession(path, options)
    return Counter(node.op_type for node in onnx.load(path.with_suffix(".loaded")).graph.node)


def test_unknown_dialect() -> None:
    with pytest.raises(burnish.OptionError, match=r"dialect.*ort, standard"):
        burnish.compile(_program(_CASES["rms_norm"]), passes="dce", backend="onnx{dialect=trt}")


class _Sizes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.deep = torch.nn.Conv3d(3, 4, 2, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = torch.relu(self.conv(x))
        means = [
            y.mean((2, 3), keepdim=True),
            y.mean((-1, -2)),
            y.mean(),
            y.mean(1),
            y.long().mean(1, dtype=torch.float32),
        ]
        return [*means, self.conv(x[0]), self.deep(x.unsqueeze(2).expand(-1, -1, 4, -1, -1)), y / y.numel()]


@pytest.mark.parametrize("options", _OPTIONS)
def test_means_convolutions_and_sizes(options: str) -> None:
    model = _Sizes().eval()
    compiled = burnish.compile(model, inputs=(torch.randn(2, 3, 8, 8),), backend=f"onnx{options}")
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            assert worst_drift(compiled(x), model(x)) <= 1e-5


def test_a_mean_over_a_feature_map_keeps_the_blocked_layout() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)).eval()
    counts = burnish.compile(model, inputs=(torch.randn(2, 3, 8, 8),), backend="onnx").artifact.optimized_node_counts()
    assert counts["GlobalAveragePool"] == 1 and counts["ReduceMean"] == 0
