"""Layers with residuals and activations, fused: random layers in every dtype, and a network of real shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from tests.fusion_variants import fuse, operators

ACTIVATIONS = [
    "aten.relu({})",
    "aten.relu6({})",
    "aten.hardtanh({}, min_val=-0.5, max_val=0.75)",
    "aten.clamp({}, min=-0.5, max=0.25)",
    "aten.clamp({}, max=0.25)",
    "aten.clamp_min({}, min=-0.25)",
    "aten.clamp_max({}, max=0.5)",
    "aten.sigmoid({})",
    "aten.tanh({})",
    "aten.silu({})",
    "aten.gelu({})",
    'aten.gelu({}, approximate="tanh")',
    "aten.hardswish({})",
    "aten.hardsigmoid({})",
    "aten.leaky_relu({})",
    "aten.leaky_relu({}, negative_slope=-0.5)",
]
# Drift from the program before; half precision runs the very same operators.
TOLERANCES = {"f32": 1e-5, "f64": 1e-12, "bf16": 0.0, "f16": 0.0}


@st.composite
def programs(draw: st.DrawFn) -> tuple[str, str, str]:
    """A layer with what may follow it: the text, the fused operator and the dtype."""
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    rank = draw(st.integers(0, 3))
    transposed = rank > 0 and draw(st.booleans())
    bias = draw(st.booleans())
    groups = draw(st.integers(1, 2)) if rank else 1
    wide = 4 * groups
    if rank == 0:
        inner = draw(st.sampled_from([[], [3], [2, 3]]))
        x, out = [*inner, 6], [*inner, 4]
        call, weight = "aten.linear(%x, @w{bias})", [4, 6]
    else:
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
        x = [2 * groups, *[5] * rank]
        if transposed:
            size = (5 - 1) * stride - 2 * padding + 3
            out, weight = [wide, *[size] * rank], [2 * groups, 4, *[3] * rank]
            name = "aten.conv_transpose1d" if rank == 1 else f"aten.conv_transpose{rank}d.input"
        else:
            out, weight = [wide, *[(5 + 2 * padding - 3) // stride + 1] * rank], [wide, 2, *[3] * rank]
            name = f"aten.conv{rank}d"
        geometry = f"stride={[stride] * rank}, padding={[padding] * rank}, groups={groups}"
        call = f"{name}(%x, @w{{bias}}, {geometry})"
    residual = draw(st.sampled_from(["none", "left", "right"]))
    activation = draw(st.sampled_from(ACTIVATIONS))
    activated = residual == "none" or draw(st.booleans())
    lines = [
        "# burnish 1",
        f"constant @w: {dtype}{weight}",
        *([f"constant @b: {dtype}[{out[0] if rank else 4}]"] if bias else []),
    ]
    lines.append(f"graph main(%x: {dtype}[B, {_joined(x)}], %r: {dtype}[B, {_joined(out)}]) {{")
    lines.append(f"  %layer = {call.format(bias=', @b' if bias else '')}")
    last = "%layer"
    if residual != "none":
        lines.append(f"  %sum = aten.add.Tensor({'%r, %layer' if residual == 'left' else '%layer, %r'})")
        last = "%sum"
    if activated:
        lines.append(f"  %act = {activation.format(last)}")
        last = "%act"
    # The residual is read in any case: an input that nothing reads has no meaning here.
    lines += [f"  return {last}, %r", "}"]
    return "\n".join(lines), "burnish.conv_act" if rank else "burnish.linear_act", dtype


def _joined(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(programs())
def test_a_layer_takes_what_follows_it(case: tuple[str, str, str]) -> None:
    text, operator, dtype = case
    fused = fuse(text, TOLERANCES[dtype], batches=(1, 3))
    assert operators(fused) == [operator]


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("%s = aten.add.Tensor(%l, %v)\n  %out = aten.relu(%s)", 1),  # broadcasts
        ("%s = aten.add.Tensor(%l, %r, alpha=2)\n  %out = aten.neg(%s)", 1),
        ("%s = aten.add.Tensor(%l, %l)\n  %out = aten.relu(%s)", 1),
        ("%s = aten.relu(%l)\n  %out = aten.add.Tensor(%s, %l)", 1),  # two readers
        ("%s = aten.relu(%r)\n  %out = aten.mul.Tensor(%s, %l)", 1),
    ],
)
def test_other_patterns_keep_their_layer(tail: str, left: int) -> None:
    text = f"""# burnish 1
constant @w: f32[4, 6]
graph main(%x: f32[B, 6], %r: f32[B, 4], %v: f32[B, 1]) {{
  %l = aten.linear(%x, @w)
  {tail}
  return %out, %r, %v
}}"""
    assert operators(fuse(text)).count("aten.linear") == left


class _Block(nn.Module):
    """A residual block as in ResNet, whose branches both end in a convolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, stride, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.down = nn.Conv2d(3, channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.down(x))


def test_residual_block() -> None:
    program = burnish.capture(_Block(4, 2).eval(), (torch.randn(2, 3, 8, 8),))
    fused, _ = run_pipeline(Pipeline.parse("canonicalize,fuse,dce"), program, Context(), verify=4)
    assert sorted(operators(fused)) == ["aten.conv2d", "burnish.conv_act", "burnish.conv_act"]


def test_a_long_chain() -> None:
    lines = ["# burnish 1", "constant @w: f32[2, 2]", "graph main(%x0: f32[B, 2]) {"]
    for index in range(2000):
        lines += [f"  %l{index} = aten.linear(%x{index}, @w)", f"  %x{index + 1} = aten.relu(%l{index})"]
    program = burnish.Program.parse("\n".join([*lines, "  return %x2000", "}"]))
    fused, _ = run_pipeline(Pipeline.parse("canonicalize,fuse"), program, Context(), verify=1)
    assert operators(fused) == ["burnish.linear_act"] * 2000
