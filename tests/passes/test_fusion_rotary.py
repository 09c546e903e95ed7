"""Rotary embedding in random spellings: pairs, layouts of the heads, angles, types, other features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from burnish.compiler.capture import capture
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program
from tests.fusion_variants import fuse, operators, reasons

_LENGTH = 3
_END = 9223372036854775807


@st.composite
def rotations(draw: st.DrawFn) -> str:
    """A Program that rotates the heads of tokens."""
    dtype = draw(st.sampled_from(["f32", "f64"]))
    heads, half, rest = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([2, 3])), draw(st.sampled_from([0, 2]))
    width = 2 * half
    size = width + rest
    near, products, outer, common = (draw(st.booleans()) for _ in range(4))
    shape = f"[-1, {heads}, {_LENGTH}, {width}]" if outer else f"[-1, {_LENGTH}, {heads}, {width}]"
    lines, inputs = [], [f"%x: {dtype}[B, {_LENGTH}, {heads * size}]"]

    def op(name: str, operator: str, *args: object) -> str:
        lines.append(f"%{name} = aten.{operator}({', '.join(map(str, args))})")
        return f"%{name}"

    def swapped(*args: str) -> list[str]:
        return list(draw(st.permutations(args)))

    def angles(name: str) -> str:
        """Angles of computed positions, of every sequence or of all; each twice unless products need them once."""
        inputs.append(f"%{name}0: {dtype}[B, {_LENGTH}, {half}]")
        value = op(f"{name}6", "slice.Tensor", f"%{name}0", 0, 0, 1) if common else f"%{name}0"
        if not products:
            if near and draw(st.booleans()):
                value = op(f"{name}1", "repeat_interleave.self_int", value, 2, -1)
            elif near:
                value = op(f"{name}1", "stack", f"[{value}, {value}]", -1)
                value = op(f"{name}2", "reshape", value, f"[-1, {_LENGTH}, {width}]")
            else:
                value = op(f"{name}1", "cat", f"[{value}, {value}]", -1)
        value = op(f"{name}3", name, value)
        if draw(st.booleans()):
            value = op(f"{name}4", "mul.Tensor", value, 1.25)
        return op(f"{name}5", "unsqueeze", value, 1 if outer else 2)

    cos, sin = angles("cos"), angles("sin")
    x = op("v", "reshape", "%x", f"[-1, {_LENGTH}, {heads}, {size}]")
    x = op("h", "permute", x, "[0, 2, 1, 3]") if outer else x
    whole = op("w", "slice.Tensor", x, 3, 0, width) if rest else x
    if near:
        a, b = (op(name, "slice.Tensor", whole, 3, start, _END, 2) for name, start in (("a", 0), ("b", 1)))
    elif draw(st.booleans()):
        lines.append(f"%u = aten.split_with_sizes({whole}, [{half}, {half}], -1)")
        lines.extend(f"%{name} = getitem(%u, {index})" for index, name in enumerate("ab"))
        a, b = "%a", "%b"
    else:
        a, b = op("a", "slice.Tensor", whole, 3, 0, half), op("b", "slice.Tensor", whole, -1, half, _END)
    if products:
        one = op(
            "one", "sub.Tensor", op("ac", "mul.Tensor", *swapped(a, cos)), op("bs", "mul.Tensor", *swapped(b, sin))
        )
        terms = op("bc", "mul.Tensor", *swapped(b, cos)), op("as", "mul.Tensor", *swapped(a, sin))
        two = op("two", "add.Tensor", *swapped(*terms))
        result = op("joined", "stack" if near else "cat", f"[{one}, {two}]", -1)
        result = op("flat", "reshape", result, shape) if near else result
    else:
        minus = op("minus", "neg", b) if draw(st.booleans()) else op("minus", "mul.Tensor", b, -1)
        turned = op("turned", "stack" if near else "cat", f"[{minus}, {a}]", -1)
        turned = op("flat", "reshape", turned, shape) if near else turned
        terms = op("wc", "mul.Tensor", *swapped(whole, cos)), op("ts", "mul.Tensor", *swapped(turned, sin))
        result = op("sum", "add.Tensor", *swapped(*terms))
    if rest:
        result = op("all", "cat", f"[{result}, {op('rest', 'slice.Tensor', x, 3, width, _END)}]", -1)
    body = "\n".join(f"  {line}" for line in lines)
    also = f", {draw(st.sampled_from([x, a]))}" if draw(st.booleans()) else ""
    return f"# burnish 1\ngraph main({', '.join(inputs)}) {{\n{body}\n  return {result}{also}\n}}"


@settings(max_examples=12, deadline=None)
@given(rotations())
def test_spellings(text: str) -> None:
    assert operators(fuse(text, batches=(1, 3))).count("burnish.rotary_embedding") == 1


@pytest.mark.parametrize(
    ("negated", "halves", "reported"), [("b", "a, %minus", False), ("b", "minus, %b", True), ("a", "minus, %b", True)]
)
def test_another_rotation_is_none(negated: str, halves: str, reported: bool) -> None:
    """Halves in their own order, or one half twice, are rotated by nothing."""
    text = f"""# burnish 1
constant @cos: f32[3, 4] = {[[0.5, 0.25, 0.5, 0.25]] * 3}
graph main(%x: f32[B, 3, 8]) {{
  %v = aten.reshape(%x, [-1, 3, 2, 4])
  %h = aten.permute(%v, [0, 2, 1, 3])
  %a = aten.slice.Tensor(%h, 3, 0, 2)
  %b = aten.slice.Tensor(%h, 3, 2, {_END})
  %minus = aten.neg(%{negated})
  %turned = aten.cat([%{halves}], -1)
  %c = aten.mul.Tensor(%h, @cos)
  %s = aten.mul.Tensor(%turned, @cos)
  %o = aten.add.Tensor(%c, %s)
  return %o
}}"""
    assert "burnish.rotary_embedding" not in operators(fuse(text))
    assert ("it does not rotate halves of one tensor's features" in reasons(text)) == reported


class _Rotated(nn.Module):
    """Queries that are rotated as complex numbers, or by halves, at the positions of a dynamic length."""

    def __init__(self, complex_numbers: bool) -> None:
        super().__init__()
        self.complex_numbers = complex_numbers
        self.register_buffer("rates", 100.0 ** (-torch.arange(4) / 4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        angles = torch.arange(length)[:, None] * self.rates[None]
        if self.complex_numbers:
            turns = torch.polar(torch.ones_like(angles), angles)[None, :, None]
            pairs = torch.view_as_complex(x.view(batch, length, 2, 4, 2))
            return torch.view_as_real(pairs * turns).flatten(3).transpose(1, 2)
        heads, twice = x.view(batch, length, 2, 8).transpose(1, 2), torch.cat((angles, angles), -1)
        turned = torch.cat((-heads[..., 4:], heads[..., :4]), -1)
        return heads * twice.cos() + turned * twice.sin()


@pytest.mark.parametrize("complex_numbers", [True, False])
def test_dynamic_lengths(complex_numbers: bool) -> None:
    model = _Rotated(complex_numbers).eval()
    dynamic = {"x": dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)}
    program: Program = capture(model, (torch.randn(2, 3, 16),), dynamic_shapes=dynamic)
    fused, _ = run_pipeline(Pipeline.parse("canonicalize,fold-constants,fuse,dce"), program, Context(), verify=4)
    assert "burnish.rotary_embedding" in operators(fused)
    for batch, length in ((1, 1), (3, 7)):
        x = torch.randn(batch, length, 16)
        torch.testing.assert_close(fused(x), model(x))
