"""Norms in random spellings: any order of operands, any root, square and variance, shapes of parameters, and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fusion_variants import fuse, operators, reasons


class Writer:
    """Writes a Program that normalizes its input, drawing every choice of how to say it."""

    def __init__(self, data: st.DataObject, dtype: str = "f32") -> None:
        self.data, self.dtype = data, dtype
        self.weight_first: list[list[int]] = []  # shapes of a weight before the division; none where it is empty
        self.constants: list[str] = []
        self.lines: list[str] = []

    def draw(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def line(self, text: str) -> str:
        name = f"%n{len(self.lines)}"
        self.lines.append(f"  {name} = aten.{text}")
        return name

    def either(self, operator: str, a: str, b: str) -> str:
        a, b = (a, b) if self.draw(True, False) else (b, a)
        return self.line(f"{operator}.Tensor({a}, {b})")

    def number(self, value: float) -> str:
        kind = self.draw("literal", "scalar", "vector")
        if kind == "literal":
            return repr(value)
        written = f"[] = {value!r}" if kind == "scalar" else f"[1] = [{value!r}]"
        return self.constant(self.dtype + written)

    def constant(self, text: str) -> str:
        self.constants.append(f"constant @c{len(self.constants)}: {text}")
        return f"@c{len(self.constants) - 1}"

    def parameter(self, shapes: list[list[int]]) -> str:
        return self.constant(f"{self.dtype}{self.draw(*shapes)}")

    def square(self, x: str) -> str:
        exponent = self.draw("2", "2.0")
        kinds = (f"mul.Tensor({x}, {x})", f"square({x})", f"pow.Tensor_Scalar({x}, exponent={exponent})")
        return self.line(self.draw(*kinds))

    def mean(self, x: str, dims: list[int]) -> str:
        return self.line(f"mean.dim({x}, dim={dims}, keepdim=True)")

    def quotient(self, top: str, variance: str, eps: float) -> str:
        if self.weight_first:
            top = self.either("mul", top, self.parameter(self.weight_first))
        radicand = self.either("add", variance, self.number(eps))
        kind = self.draw("div", "reciprocal", "rsqrt", "power")
        if kind == "rsqrt":
            return self.either("mul", top, self.line(f"rsqrt({radicand})"))
        if kind == "power":
            return self.either("mul", top, self.line(f"pow.Tensor_Scalar({radicand}, exponent=-0.5)"))
        root = self.line(self.draw(f"sqrt({radicand})", f"pow.Tensor_Scalar({radicand}, exponent=0.5)"))
        if kind == "div":
            return self.line(f"div.Tensor({top}, {root})")
        return self.either("mul", top, self.line(f"reciprocal({root})"))

    def centered_norm(self, x: str, dims: list[int], rank: int, eps: float) -> str:
        also = [each - rank for each in dims]
        centered = self.line(f"sub.Tensor({x}, {self.mean(x, self.draw(dims, also))})")
        kind = self.draw("squares", "correction", "unbiased", "twice")
        if kind == "correction":
            variance = self.line(f"var.correction({x}, dim={self.draw(dims, also)}, correction=0, keepdim=True)")
        elif kind == "unbiased":
            variance = self.line(f"var.dim({x}, dim={dims}, unbiased=False, keepdim=True)")
        else:
            again = centered if kind == "squares" else self.line(f"sub.Tensor({x}, {self.mean(x, also)})")
            variance = self.mean(self.square(again), dims)
        return self.quotient(centered, variance, eps)

    def affine(self, value: str, shapes: list[list[int]], weight: bool, bias: bool) -> str:
        value = self.either("mul", value, self.parameter(shapes)) if weight else value
        return self.either("add", value, self.parameter(shapes)) if bias else value

    def text(self, result: str, shape: str) -> str:
        body = "\n".join(self.lines)
        constants = "".join(each + "\n" for each in self.constants)
        return f"# burnish 1\n{constants}graph main(%x: {self.dtype}[{shape}]) {{\n{body}\n  return {result}\n}}"


_DTYPES, _EPS = st.sampled_from(["f32", "f64"]), st.sampled_from([1e-5, 1e-6, 1e-12, 0.1])


@given(st.data(), _DTYPES, _EPS, st.booleans(), st.booleans())
@settings(max_examples=14, deadline=None)
def test_layer_norm(data: st.DataObject, dtype: str, eps: float, weight: bool, bias: bool) -> None:
    writer = Writer(data, dtype)
    dims = writer.draw([2], [1, 2])
    shapes = [[8], [1, 8], [1, 1, 8]] if dims == [2] else [[5, 8], [1, 5, 8]]
    writer.weight_first, weight = (shapes, False) if writer.draw(True, False) else ([], weight)
    result = writer.affine(writer.centered_norm("%x", dims, 3, eps), shapes, weight, bias)
    assert operators(fuse(writer.text(result, "B, 5, 8"))) == ["aten.layer_norm"]


@given(st.data(), _DTYPES, _EPS, st.booleans())
@settings(max_examples=10, deadline=None)
def test_rms_norm(data: st.DataObject, dtype: str, eps: float, weight: bool) -> None:
    writer = Writer(data, dtype)
    mean = writer.mean(writer.square("%x"), writer.draw([-1], [2]))
    shapes = [[8], [1, 8], [1, 1, 8]]
    writer.weight_first, weight = (shapes, False) if writer.draw(True, False) else ([], weight)
    result = writer.affine(writer.quotient("%x", mean, eps), shapes, weight, False)
    assert operators(fuse(writer.text(result, "B, S, 8"))) == ["aten.rms_norm"]


@given(st.data(), st.booleans(), st.booleans())
@settings(max_examples=6, deadline=None)
def test_over_channels(data: st.DataObject, weight: bool, bias: bool) -> None:
    writer = Writer(data)
    result = writer.affine(writer.centered_norm("%x", [1], 4, 1e-6), [[6, 1, 1], [1, 6, 1, 1]], weight, bias)
    assert operators(fuse(writer.text(result, "B, 6, 4, 5"))) == ["aten.permute", "aten.layer_norm", "aten.permute"]


@given(st.data(), st.sampled_from([1, 2, 3, 6]), st.booleans(), st.booleans())
@settings(max_examples=10, deadline=None)
def test_group_norm(data: st.DataObject, groups: int, weight: bool, bias: bool) -> None:
    writer = Writer(data)
    shape = writer.draw([groups, 120 // groups], [groups, 6 // groups, 4, 5], [groups, 6 // groups, 20])
    split = writer.line(f"reshape(%x, shape={[-1, *shape]})")
    dims = list(range(2, len(shape) + 1))
    normalized = writer.centered_norm(split, dims, len(shape) + 1, 1e-5)
    back = writer.line(f"reshape({normalized}, shape=[-1, 6, 4, 5])")
    result = writer.affine(back, [[6, 1, 1], [1, 6, 1, 1]], weight, bias)
    assert operators(fuse(writer.text(result, "B, 6, 4, 5"))) == ["aten.group_norm"]


@given(st.data(), st.booleans())
@settings(max_examples=4, deadline=None)
def test_instance_norm_of_dynamic_sizes(data: st.DataObject, weight: bool) -> None:
    writer = Writer(data)
    result = writer.affine(writer.centered_norm("%x", [2, 3], 4, 1e-5), [[6, 1, 1]], weight, weight)
    assert operators(fuse(writer.text(result, "B, 6, H, W"))) == ["aten.group_norm"]


@given(st.data(), st.sampled_from(["f16", "bf16"]))
@settings(max_examples=5, deadline=None)
def test_half_precision_stays(data: st.DataObject, dtype: str) -> None:
    writer = Writer(data, dtype)
    text = writer.text(writer.centered_norm("%x", [1], 2, 0.1), "B, 8")
    fused = fuse(text, tolerance=0.0)
    assert "aten.layer_norm" not in operators(fused)
    assert len(reasons(text)) == 1


@pytest.mark.parametrize("shape", ["8, 8", "1, 8, 1", "8, 1"])
def test_what_is_no_parameter_of_a_norm_stays(shape: str) -> None:
    text = f"""# burnish 1
constant @other: f32[{shape}]
graph main(%x: f32[B, 8, 8]) {{
  %norm = aten.layer_norm(%x, normalized_shape=[8])
  %out = aten.mul.Tensor(%norm, @other)
  return %out
}}"""
    assert "aten.mul.Tensor" in operators(fuse(text))


def test_the_mean_of_something_else_is_no_norm() -> None:
    text = """# burnish 1
graph main(%x: f32[B, 8], %y: f32[B, 8]) {
  %mean = aten.mean.dim(%y, dim=[-1], keepdim=True)
  %centered = aten.sub.Tensor(%x, %mean)
  %variance = aten.var.correction(%x, dim=[-1], correction=0, keepdim=True)
  %eps = aten.add.Tensor(%variance, 1e-05)
  %root = aten.rsqrt(%eps)
  %out = aten.mul.Tensor(%centered, %root)
  return %out
}"""
    assert "aten.layer_norm" not in operators(fuse(text))
