"""Activations in random spellings: any order and grouping of factors, numbers as literals or constants, both dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.activations import ACT2CLS

from burnish.compiler.capture import capture
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from tests.fusion_variants import fuse, operators, reasons

_ROOT = math.sqrt(2 / math.pi)


class Writer:
    """Writes a Program that computes in `dtype`, drawing every choice of how to say it."""

    def __init__(self, draw: st.DrawFn, dtype: str = "f32") -> None:
        self.draw = draw
        self.dtype = dtype
        self.constants: list[str] = []
        self.lines: list[str] = []

    def op(self, operator: str, *args: object, more: str = "") -> str:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = aten.{operator}({', '.join(map(str, args))}{more})")
        return name

    def number(self, value: float) -> str:
        """A constant of one element, of up to two dimensions, that holds a number."""
        rank = self.draw(st.integers(0, 2))
        shape, data = ", ".join(["1"] * rank), "[" * rank + repr(value) + "]" * rank
        self.constants.append(f"constant @c{len(self.constants)}: {self.dtype}[{shape}] = {data}")
        return f"@c{len(self.constants) - 1}"

    def times(self, value: str, number: float) -> str:
        how = self.draw(st.integers(0, 3))
        if number == 1:
            return value
        if how == 0:
            return self.op("div.Tensor", value, 1 / number)
        if how == 1:
            return self.op("mul.Tensor", self.number(number), value)
        return self.op("mul.Tensor", value, number if how == 2 else self.number(number))

    def plus(self, value: str, number: float) -> str:
        how = self.draw(st.integers(0, 3))
        if how == 0:
            return self.op("sub.Tensor", value, -number)
        if how == 1:
            return self.op("add.Tensor", self.number(number), value)
        return self.op("add.Tensor", value, number if how == 2 else self.number(number))

    def product(self, *factors: str | float) -> str:
        """Multiplies in any order and grouping; at least one factor is no number."""
        left = list(factors)
        while len(left) > 1:
            a, b = self.draw(st.permutations(left))[:2]
            left.remove(a)
            left.remove(b)
            if isinstance(a, str) and isinstance(b, str):
                left.append(self.op("mul.Tensor", a, b))
            elif isinstance(a, str):
                left.append(self.times(a, float(b)))
            else:
                left.append(self.times(b, a) if isinstance(b, str) else a * b)
        return str(left[0])

    def sum(self, a: str, b: str) -> str:
        return self.op("add.Tensor", *self.draw(st.permutations([a, b])))

    def text(self, *results: str) -> str:
        head = ["# burnish 1", *self.constants, f"graph main(%x: {self.dtype}[B, 3, 4]) {{"]
        return "\n".join([*head, *self.lines, f"  return {', '.join(results)}", "}"])


def normal_gate(w: Writer, x: str) -> str:
    if w.draw(st.booleans()):
        return w.product(w.op("erfc", w.times(x, -math.sqrt(0.5))), 0.5)
    return w.product(0.5, w.plus(w.op("erf", w.times(x, math.sqrt(0.5))), 1.0))


def tanh_gate(w: Writer, x: str) -> str:
    square = w.draw(st.sampled_from([("square", ()), ("pow.Tensor_Scalar", (2,)), ("mul.Tensor", (x,))]))
    if w.draw(st.booleans()):
        inner = w.product(x, _ROOT, w.plus(w.product(w.op(square[0], x, *square[1]), 0.044715), 1.0))
    else:
        cube = w.op("pow.Tensor_Scalar", x, 3) if w.draw(st.booleans()) else w.product(x, x, x)
        inner = w.product(w.sum(x, w.times(cube, 0.044715)), _ROOT)
    return w.product(0.5, w.plus(w.op("tanh", inner), 1.0))


def logistic_gate(w: Writer, x: str, alpha: float = 1.0) -> str:
    how = w.draw(st.integers(0, 2))
    if how == 0:
        return w.op("sigmoid", w.times(x, alpha))
    if how == 1:
        return w.op("reciprocal", w.plus(w.op("exp", w.times(x, -alpha)), 1.0))
    return w.product(0.5, w.plus(w.op("tanh", w.times(x, alpha / 2)), 1.0))


def quick_gate(w: Writer, x: str) -> str:
    return logistic_gate(w, x, w.draw(st.sampled_from([1.702, 0.5, -2.0])))


def hard_gate(w: Writer, x: str) -> str:
    high = w.draw(st.sampled_from([6.0, 1.0, 2.5]))
    inner = w.plus(w.times(x, high / 6), high / 2)
    clamped = w.op(w.draw(st.sampled_from(["clamp", "clip", "hardtanh"])), inner, 0.0, high)
    return w.product(clamped, 1 / high)


def softplus_gate(w: Writer, x: str) -> str:
    if w.draw(st.booleans()):
        return w.op("tanh", w.op("softplus", x))
    return w.op("tanh", w.op("log1p", w.op("exp", x)))


Gate = Callable[[Writer, str], str]
GATES: list[tuple[Gate, str]] = [
    (normal_gate, "aten.gelu"),
    (tanh_gate, "aten.gelu"),
    (logistic_gate, "aten.silu"),
    (quick_gate, "burnish.quick_gelu"),
    (hard_gate, "aten.hardswish"),
    (softplus_gate, "aten.mish"),
]


@given(st.data(), st.sampled_from(["f32", "f64"]), st.sampled_from(["plain", "computed", "scaled"]))
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize(("gate", "expected"), GATES, ids=[gate.__name__ for gate, _ in GATES])
def test_spellings(gate: Gate, expected: str, data: st.DataObject, dtype: str, source: str) -> None:
    w = Writer(data.draw, dtype)
    x = {"plain": lambda: "%x", "computed": lambda: w.op("cos", "%x"), "scaled": lambda: w.op("mul.Tensor", "%x", 3)}[
        source
    ]()
    before = len(w.lines)
    fused = fuse(w.text(w.product(x, gate(w, x))))
    assert operators(fused)[before:] == [expected]


@given(st.data(), st.sampled_from(GATES))
@settings(max_examples=20, deadline=None)
def test_any_value_inside_with_another_user_keeps_the_spelling(data: st.DataObject, case: tuple[Gate, str]) -> None:
    w = Writer(data.draw)
    result = w.product("%x", case[0](w, "%x"))
    inner = data.draw(st.sampled_from([f"%v{index}" for index in range(len(w.lines) - 1)]))
    fused = fuse(w.text(result, inner))
    assert case[1] not in operators(fused)


@given(st.data(), st.sampled_from(GATES), st.sampled_from(["f16", "bf16"]))
@settings(max_examples=10, deadline=None)
def test_half_precision_keeps_the_spelling(data: st.DataObject, case: tuple[Gate, str], dtype: str) -> None:
    w = Writer(data.draw, dtype)
    assert case[1] not in operators(fuse(w.text(w.product("%x", case[0](w, "%x"))), tolerance=0.0))


@given(st.data(), st.floats(1e-5, 0.1), st.sampled_from([-1, 1]))
@settings(max_examples=10, deadline=None)
def test_other_constants_are_refused(data: st.DataObject, error: float, sign: int) -> None:
    w = Writer(data.draw)
    gate = w.product(0.5, w.plus(w.op("erf", w.times("%x", math.sqrt(0.5) * (1 + sign * error))), 1.0))
    text = w.text(w.product("%x", gate))
    assert "aten.gelu" not in operators(fuse(text))
    assert any("no activation has the gate Phi" in reason for reason in reasons(text))


@given(st.data(), st.integers(3, 4))
@settings(max_examples=10, deadline=None)
def test_a_constant_with_more_dimensions_than_the_input_is_refused(data: st.DataObject, rank: int) -> None:
    w = Writer(data.draw)
    w.constants.append(f"constant @scale: f32[{', '.join(['1'] * rank)}] = {'[' * rank}0.5{']' * rank}")
    fused = fuse(w.text(w.product(w.op("mul.Tensor", "%x", "@scale"), w.plus(w.op("tanh", w.times("%x", 0.5)), 1.0))))
    assert ("aten.silu" in operators(fused)) == (rank == 3)


def test_large_values_agree() -> None:
    w = Writer(st.DrawFn)  # type: ignore[arg-type]
    log = w.op("log1p", w.op("exp", "%x"))
    mish = w.op("mul.Tensor", "%x", w.op("tanh", log))
    large = w.op("gt.Scalar", "%x", 20)
    softplus = w.op("where.self", large, "%x", w.op("log1p", w.op("exp", "%x")))
    fused = fuse(w.text(mish, softplus))
    assert operators(fused) == ["aten.mish", "aten.softplus"]
    x = torch.tensor([-1000.0, -100.0, 0.0, 19.0, 20.0, 21.0, 80.0, 90.0, 1000.0, math.inf, -30.0, 5.0]).view(1, 3, 4)
    original = (x * torch.tanh(torch.log1p(torch.exp(x))), torch.where(x > 20, x, torch.log1p(torch.exp(x))))
    for actual, expected in zip(fused(x=x), original, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu_new", "aten.gelu"),
        ("gelu_fast", "aten.gelu"),
        ("gelu_python", "aten.gelu"),
        ("gelu_python_tanh", "aten.gelu"),
        ("gelu_accurate", "aten.gelu"),
        ("quick_gelu", "burnish.quick_gelu"),
    ],
)
def test_what_transformers_spells_out(name: str, expected: str) -> None:
    found = ACT2CLS[name]
    module: nn.Module = found[0](**found[1]) if isinstance(found, tuple) else found()
    program = capture(module, (torch.randn(2, 5),))
    fused, _ = run_pipeline(Pipeline.parse("canonicalize,fold-constants,cse,fuse,dce"), program, Context(), verify=4)
    assert operators(fused) == [expected]
