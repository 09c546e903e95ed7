"""Attention over tokens in random layouts: how heads are split, repeated and merged, masks, types, several users."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from burnish.compiler.capture import capture
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from tests.fusion_variants import fuse, operators, reasons

_S, _T = 3, 5


@st.composite
def attentions(draw: st.DrawFn) -> tuple[str, int]:
    """A Program with one attention that splits tokens into heads, and how many heads keys and values have."""
    dtype = draw(st.sampled_from(["f32", "f64"]))
    heads, size, value = (
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from([1, 2, 3])),
        draw(st.sampled_from([1, 4])),
    )
    kv = draw(st.sampled_from([each for each in (1, 2, 4) if heads % each == 0]))
    lines: list[str] = []
    inputs: list[str] = []

    def tokens(name: str, length: int, width: int) -> str:
        how = draw(st.sampled_from(["input", "part", "turned", "flat"]))
        if how == "part":
            inputs.append(f"%{name}0: {dtype}[B, {length}, {width + 3}]")
            lines.append(f"%{name}1 = aten.slice.Tensor(%{name}0, 2, 2, {width + 2})")
        elif how == "turned":
            inputs.append(f"%{name}0: {dtype}[B, {width}, {length}]")
            lines.append(f"%{name}1 = aten.permute(%{name}0, [0, 2, 1])")
        elif how == "flat":
            inputs.append(f"%{name}0: {dtype}[B, {length * width}]")
            lines.append(f"%{name}1 = aten.reshape(%{name}0, [-1, {length}, {width}])")
        else:
            inputs.append(f"%{name}1: {dtype}[B, {length}, {width}]")
        return f"%{name}1"

    def split(name: str, length: int, count: int, each: int) -> str:
        lines.append(f"%{name}2 = aten.reshape({tokens(name, length, count * each)}, [-1, {length}, {count}, {each}])")
        lines.append(f"%{name}3 = aten.permute(%{name}2, [0, 2, 1, 3])")
        return f"%{name}3"

    q, k, v = split("q", _S, heads, size), split("k", _T, kv, size), split("v", _T, kv, value)
    grouped = draw(st.sampled_from(["gqa", "repeat", "expand"])) if kv != heads else "none"
    if grouped in ("repeat", "expand"):
        times = heads // kv
        for name, each in (("k", size), ("v", value)):
            if grouped == "repeat":
                lines.append(f"%{name}6 = aten.repeat_interleave.self_int(%{name}3, {times}, 1)")
                continue
            lines.append(f"%{name}4 = aten.unsqueeze(%{name}3, 2)")
            lines.append(f"%{name}5 = aten.expand(%{name}4, [-1, {kv}, {times}, {_T}, {each}])")
            lines.append(f"%{name}6 = aten.reshape(%{name}5, [-1, {heads}, {_T}, {each}])")
        k, v = "%k6", "%v6"
    masked = draw(st.sampled_from(["None", "b1", dtype]))
    if masked != "None":
        shape = draw(st.sampled_from([f"B, 1, {_S}, {_T}", f"B, {heads}, {_S}, {_T}", f"B, 1, 1, {_T}"]))
        inputs.append(f"%mask: {masked}[{shape}]")
    causal = masked == "None" and draw(st.booleans())
    options = f", {'%mask' if masked != 'None' else 'None'}, 0.0, {causal}"
    options += f", scale={draw(st.sampled_from([0.3, 1.0]))}" if draw(st.booleans()) else ""
    options += ", enable_gqa=True" if grouped == "gqa" else ""
    lines.append(f"%y = aten.scaled_dot_product_attention({q}, {k}, {v}{options})")
    lines.append("%m = aten.permute(%y, [0, 2, 1, 3])")
    merged = draw(
        st.sampled_from([f"[-1, {_S}, {heads * value}]", f"[-1, {heads * value}]", f"[-1, {_S * heads * value}]"])
    )
    lines.append(f"%o = aten.reshape(%m, {merged})")
    results = ["%o"]
    if draw(st.booleans()):
        lines.append(f"%n = aten.neg({draw(st.sampled_from([q, k, '%m']))})")
        results.append("%n")
    body = "\n".join(f"  {line}" for line in lines)
    return f"# burnish 1\ngraph main({', '.join(inputs)}) {{\n{body}\n  return {', '.join(results)}\n}}", kv


@settings(max_examples=12, deadline=None)
@given(attentions())
def test_layouts(variant: tuple[str, int]) -> None:
    text, kv = variant
    fused = fuse(text, batches=(1, 3))
    assert operators(fused).count("burnish.multi_head_attention") == 1
    nodes = (node for _, graph in fused.all_graphs() for node in graph.nodes)
    node = next(node for node in nodes if "multi_head_attention" in str(node.target))
    assert node.kwargs["kv_heads"] == kv


@settings(max_examples=12, deadline=None)
@given(st.permutations([0, 1, 2, 3]), st.permutations([0, 1, 2, 3]))
def test_any_order_of_dimensions_is_right(before: list[int], after: list[int]) -> None:
    """Heads that are split and merged in whatever order give the same, whether it is attention over tokens or not."""
    sizes = [2, 3, 4, 6]
    text = "# burnish 1\ngraph main(%x: f32[2, 3, 4, 6]) {\n"
    text += f"  %q = aten.permute(%x, {before})\n"
    text += "  %y = aten.scaled_dot_product_attention(%q, %q, %q)\n"
    text += f"  %m = aten.permute(%y, {after})\n"
    shape = [sizes[before[dim]] for dim in after]
    text += f"  %o = aten.reshape(%m, [{shape[0]}, {shape[1]}, {shape[2] * shape[3]}])\n  return %o\n}}"
    fuse(text, batches=(2,))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_modules_of_pytorch(batch_first: bool, need_weights: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.attention(x, y, y, need_weights=need_weights)[0]
            return result

    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    x, y = (x, y) if batch_first else (x.transpose(0, 1), y.transpose(0, 1))
    program = capture(Model().eval(), (x, y), dynamic_shapes=({}, {}))
    fused, _ = run_pipeline(Pipeline.parse("canonicalize,dce,fuse,dce"), program, Context(), verify=4)
    assert operators(fused).count("burnish.multi_head_attention") == 1
    assert operators(fused).count("aten.permute") == (0 if batch_first else 3)


def test_two_dynamic_sizes_stay_dynamic() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            q, k, v = x.view(batch, length, 4, 12).split(4, -1)
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return y.transpose(1, 2).reshape(batch, length, 16)

    dynamic = {"x": dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)}
    program = capture(Model(), (torch.randn(2, 3, 48),), dynamic_shapes=dynamic)
    fused, _ = run_pipeline(Pipeline.parse("canonicalize,fuse,dce"), program, Context(), verify=4)
    assert "burnish.multi_head_attention" in operators(fused)
    for batch, length in ((1, 1), (3, 7)):
        x = torch.randn(batch, length, 48)
        torch.testing.assert_close(fused(x), Model()(x))


def test_tiled_heads_are_no_groups() -> None:
    """Heads that are repeated as a whole, not each of them, are in another order."""
    text = """# burnish 1
graph main(%q0: f32[B, 3, 16], %k0: f32[B, 3, 8]) {
  %q1 = aten.reshape(%q0, [-1, 3, 4, 4])
  %q = aten.permute(%q1, [0, 2, 1, 3])
  %k1 = aten.reshape(%k0, [-1, 3, 2, 4])
  %k2 = aten.permute(%k1, [0, 2, 1, 3])
  %k3 = aten.unsqueeze(%k2, 1)
  %k4 = aten.expand(%k3, [-1, 2, 2, 3, 4])
  %k = aten.reshape(%k4, [-1, 4, 3, 4])
  %y = aten.scaled_dot_product_attention(%q, %k, %k)
  %m = aten.permute(%y, [0, 2, 1, 3])
  %o = aten.reshape(%m, [-1, 3, 16])
  return %o
}"""
    assert "burnish.multi_head_attention" not in operators(fuse(text))
    assert "the key is made head by head" in reasons(text)
