"""Zeros in front of a convolution: they become its padding where both sides are alike, and the numbers stay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import Context, Pipeline, Program
from burnish.compiler.pipeline import run_pipeline
from tests.fusion_variants import fuse, operators, reasons


def _text(pad: list[int], rank: int = 2, dtype: str = "f32", own: int = 0, value: str = "0.0", more: str = "") -> str:
    sizes, kernel = ", ".join(["7"] * rank), ", ".join(["3"] * rank)
    return f"""# burnish 1
constant @w: {dtype}[6, 2, {kernel}]
constant @b: {dtype}[6]
graph main(%x: {dtype}[B, 4, {sizes}]) {{
  %pad = aten.constant_pad_nd(%x, {pad}, {value})
  %conv = aten.conv{rank}d(%pad, @w, @b, stride={[2] * rank}, padding={[own] * rank}, groups=2)
  return %conv{more}
}}"""


@given(st.data(), st.integers(1, 3), st.sampled_from(["f32", "f64"]), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_equal_sides_go_into_the_convolution(data: st.DataObject, rank: int, dtype: str, own: int) -> None:
    sides = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=rank))
    pad = [each for side in sides for each in (side, side)]
    assert operators(fuse(_text(pad, rank, dtype, own))) == [f"aten.conv{rank}d"]


@given(st.lists(st.integers(-2, 3), min_size=2, max_size=6).filter(lambda pad: len(pad) % 2 == 0))
@settings(max_examples=40, deadline=None)
def test_any_padding_keeps_the_numbers(pad: list[int]) -> None:
    fused = operators(fuse(_text([*pad[:4], 0, 0])))
    even = pad[:4:2] == pad[1:4:2] and min(pad[:4]) >= 0
    assert fused == (["aten.conv2d"] if even else ["aten.constant_pad_nd", "aten.conv2d"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_text([0, 1, 0, 1]), "differs from side to side"),
        (_text([-1, -1]), "its input is cut"),
        (_text([1, 1], value="1.0"), "padded with 1.0, not with zeros"),
        (_text([0, 0, 0, 0, 0, 0, 1, 1]), "other dimensions than the spatial ones"),
        (_text([1, 1], dtype="bf16"), "half precision"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    assert any(reason in each for each in reasons(text))
    assert "aten.constant_pad_nd" in operators(fuse(text))


def test_a_pad_that_others_read_stays_for_them() -> None:
    fused = fuse(_text([1, 1, 1, 1], more=", %pad"))
    assert operators(fused) == ["aten.constant_pad_nd", "aten.conv2d"]
    conv = next(node for node in fused.graphs["main"].nodes if "conv2d" in str(node.target))
    assert conv.args[0].op == "placeholder"  # it need not wait for the copy


def test_padding_and_activation_join_one_convolution() -> None:
    text = _text([1, 1, 1, 1]).replace("return %conv", "%relu = aten.relu(%conv)\n  return %relu")
    assert operators(fuse(text)) == ["burnish.conv_act"]


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_an_infinite_weight_keeps_the_zeros_that_it_meets(number: str) -> None:
    program = Program.parse(_text([1, 1]))
    program.constants["w"][0, 0, 0, 0] = float(number)
    fused, records = run_pipeline(Pipeline.parse("canonicalize,fuse"), program, Context(), verify=3)
    assert "aten.constant_pad_nd" in operators(fused)
    assert "its weight is not known to be finite" in [skip.reason for record in records for skip in record.skips]
