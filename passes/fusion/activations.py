"""Rules: activations that a model spells out become one operator.

What most of them have in common is a product x * gate(x). So the rule flattens the product, normalizes the gate to one
of five kinds, expands the gate's argument in powers of x, and looks the coefficients up; order and grouping of
factors, and where constants stand, do not matter. With Phi the distribution function of the normal distribution:

    x Phi(x)                        gelu                        Phi(u) = (1 + erf(u / sqrt 2)) / 2
    x sigmoid(c (x + 0.044715 x^3)) gelu(approximate="tanh")    sigmoid(u) = (1 + tanh(u / 2)) / 2 = 1 / (1 + exp(-u))
    x sigmoid(x)                    silu
    x sigmoid(alpha x)              burnish.quick_gelu
    x clamp(x + 3, 0, 6) / 6        hardswish
    x tanh(softplus(x))             mish

with c = 2 sqrt(2 / pi). Besides these, clamp(x + 3, 0, 6) / 6 becomes hardsigmoid; where(x > t, x, log1p(exp(x))) and
relu(x) + log1p(exp(-|x|)) become softplus.

log1p(exp(x)) alone does not become softplus: it is infinite from x = 89 on (in float32), where softplus is x. In mish
it may: tanh of both is 1 there.

Not handled: half precision, where the operator rounds less often than what it replaces; further factors between x and
its gate, (a x) sigmoid(x); sums that are expanded, 0.5 x + 0.5 x erf(..); constants with
fewer than six digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import same_type, tensor_of
from burnish.passes.fusion.algebra import PRODUCTS, Product, affine, close, polynomial, product
from burnish.passes.fusion.interiors import own_interior
from burnish.passes.fusion.matching import addends, calls, erase_unused, number_of

__all__ = ["RULES"]

_CUBIC = 0.044715
_TANH_SLOPE = 2 * math.sqrt(2 / math.pi)
_CLAMPS = ("aten.clamp", "aten.clip", "aten.hardtanh")
_HARD = (0.5, 1 / 6)
# From here on tanh(softplus(x)) is 1 in float64, so that it does not matter where softplus turns linear.
_LINEAR_FROM = 20


@dataclass(frozen=True, slots=True)
class _Gate:
    """`scale` * function(`stretch` * `argument`), where function is Phi, sigmoid, clamp to 0..1, or what is named."""

    function: str
    scale: float
    stretch: float
    argument: Any


@rule(*PRODUCTS)
def gated_activation(node: fx.Node, rewriter: Rewriter) -> None:
    """A value times a gate that reads the value is an activation."""
    found = product(node, rewriter)
    for factor, gate in _split(found, rewriter):
        for offset, scale, x in affine(factor, rewriter):
            if offset != 0:
                break
            coefficients = polynomial(gate.argument, x, rewriter)
            if coefficients is None:
                continue
            scaled = [gate.stretch * each for each in coefficients]
            operator, kwargs = _activation(gate.function, scaled)
            factor_left = found.scale * scale * gate.scale
            if operator is None:
                rewriter.skip(node, f"no activation has the gate {gate.function}({_written(scaled)})")
            elif not close(factor_left, 1):
                rewriter.skip(node, f"it is {factor_left:.6g} times the activation {operator}")
            else:
                _fuse(node, x, operator, (), kwargs, rewriter)
                return


@rule(*PRODUCTS, *_CLAMPS)
def hardsigmoid(node: fx.Node, rewriter: Rewriter) -> None:
    """Hardsigmoid is relu6(x + 3) / 6, or clamp(x / 6 + 0.5, 0, 1)."""
    found = product(node, rewriter)
    gate = _clamp(found.top[0], rewriter) if len(found.top) == 1 and not found.bottom else None
    if gate is None or not close(found.scale * gate.scale, 1):
        return
    for offset, scale, x in affine(gate.argument, rewriter):
        coefficients = [offset * gate.stretch, scale * gate.stretch]
        if _same(coefficients, _HARD):
            _fuse(node, x, "aten.hardsigmoid", (), {}, rewriter)
            return
        if close(coefficients[0], _HARD[0]):
            rewriter.skip(node, f"no activation is clamp({_written(coefficients)})")


@rule("aten.where.self")
def softplus(node: fx.Node, rewriter: Rewriter) -> None:
    """Softplus with a threshold is where(x > t, x, log1p(exp(x))), or where(x <= t, log1p(exp(x)), x)."""
    found = arguments(node)
    condition = found["condition"]
    if calls(condition, "aten.gt.Scalar", "aten.gt.Tensor"):
        linear, curved = found["self"], found["other"]
    elif calls(condition, "aten.le.Scalar", "aten.le.Tensor"):
        curved, linear = found["self"], found["other"]
    else:
        return
    compared = arguments(condition)
    threshold = number_of(compared["other"], rewriter)
    if threshold is None or compared["self"] is not linear or _log1p_exp(curved) is not linear:
        return
    _fuse(node, linear, "aten.softplus", () if threshold == 20 else (1, threshold), {}, rewriter)


@rule("aten.add.Tensor")
def stable_softplus(node: fx.Node, rewriter: Rewriter) -> None:
    """relu(x) + log1p(exp(-|x|)) is softplus(x)."""
    for linear, curved in addends(node):
        exponent = _log1p_exp(curved)
        if exponent is None or not calls(linear, "aten.relu"):
            continue
        x: fx.Node = arguments(linear)["self"]
        for offset, scale, inner in affine(exponent, rewriter):
            if (offset, scale) == (0, -1) and calls(inner, "aten.abs") and inner.args[0] is x:
                _fuse(node, x, "aten.softplus", (), {}, rewriter)
                return


@rule("aten.log1p", "aten.special_log1p", "aten.log")
def overflowing_softplus(node: fx.Node, rewriter: Rewriter) -> None:
    """Says why log(1 + exp(x)) stays."""
    x = _log1p_exp(node) or _log_one_plus_exp(node, rewriter)
    bounded = x is not None and any(calls(inner, "aten.abs") for _, _, inner in affine(x, rewriter))
    if x is not None and not bounded:
        rewriter.skip(node, "it is infinite where exp overflows, and softplus is not")


def _split(found: Product, rewriter: Rewriter) -> Iterator[tuple[fx.Node, _Gate]]:
    """Yield the ways to take a product of two for a value and a gate."""
    if len(found.top) == 1 and len(found.bottom) == 1:
        gate = _logistic(found.bottom[0], rewriter)
        if gate is not None:
            yield found.top[0], gate
    elif len(found.top) == 2 and not found.bottom:
        for factor, other in (found.top, found.top[::-1]):
            gate = _gate(other, rewriter)
            if gate is not None:
                yield factor, gate


def _gate(value: Any, rewriter: Rewriter) -> _Gate | None:
    if calls(value, "aten.sigmoid", "aten.special_expit"):
        return _Gate("sigmoid", 1, 1, value.args[0])
    if calls(value, "aten.special_ndtr"):
        return _Gate("Phi", 1, 1, value.args[0])
    if calls(value, "aten.erfc", "aten.special_erfc"):
        return _Gate("Phi", 2, -math.sqrt(2), value.args[0])
    if calls(value, "aten.hardsigmoid"):
        return _Gate("hardsigmoid", 1, 1, value.args[0])
    if calls(value, "aten.tanh"):
        argument = _softplus(value.args[0], rewriter)
        return None if argument is None else _Gate("tanh(softplus)", 1, 1, argument)
    return _clamp(value, rewriter) or _shifted(value, rewriter)


def _shifted(value: Any, rewriter: Rewriter) -> _Gate | None:
    """Return the gate c + c erf(u) or c + c tanh(u); a minus sign goes into the argument, both being odd."""
    for offset, scale, inner in affine(value, rewriter):
        if not close(offset, abs(scale)):
            continue
        sign = math.copysign(1, scale)
        if calls(inner, "aten.erf", "aten.special_erf"):
            return _Gate("Phi", 2 * offset, sign * math.sqrt(2), inner.args[0])
        if calls(inner, "aten.tanh"):
            return _Gate("sigmoid", 2 * offset, sign * 2, inner.args[0])
    return None


def _logistic(denominator: Any, rewriter: Rewriter) -> _Gate | None:
    """Return the gate 1 / (c + c exp(u))."""
    for offset, scale, inner in affine(denominator, rewriter):
        if calls(inner, "aten.exp") and offset != 0 and close(offset, scale):
            return _Gate("sigmoid", 1 / offset, -1, inner.args[0])
    return None


def _clamp(value: Any, rewriter: Rewriter) -> _Gate | None:
    """Return the gate clamp(u, 0, high)."""
    if calls(value, "aten.relu6"):
        return _Gate("clamp", 6, 1 / 6, value.args[0])
    if not calls(value, *_CLAMPS):
        return None
    found = arguments(value)
    low = number_of(found.get("min_val", found.get("min")), rewriter)
    high = number_of(found.get("max_val", found.get("max")), rewriter)
    if low != 0 or high is None or high <= 0:
        return None
    return _Gate("clamp", high, 1 / high, found["self"])


def _softplus(value: Any, rewriter: Rewriter) -> Any:
    """Return u where `value` is softplus(u), or overflows where softplus(u) is large; None otherwise."""
    if calls(value, "aten.softplus"):
        found = arguments(value)
        return found["self"] if found["beta"] == 1 and found["threshold"] >= _LINEAR_FROM else None
    return _log1p_exp(value) or _log_one_plus_exp(value, rewriter)


def _log1p_exp(value: Any) -> Any:
    if not calls(value, "aten.log1p", "aten.special_log1p"):
        return None
    return value.args[0].args[0] if calls(value.args[0], "aten.exp") else None


def _log_one_plus_exp(value: Any, rewriter: Rewriter) -> Any:
    for offset, scale, inner in affine(value.args[0], rewriter) if calls(value, "aten.log") else ():
        if (offset, scale) == (1, 1) and calls(inner, "aten.exp"):
            return inner.args[0]
    return None


def _activation(gate: str, coefficients: Sequence[float]) -> tuple[str | None, dict[str, Any]]:
    """Return the operator, and its keyword arguments, that is x times this gate of this polynomial of x."""
    slope = coefficients[1] if len(coefficients) > 1 else 0.0
    proportional = _same(coefficients, (0, slope))
    if gate == "Phi" and proportional and close(slope, 1):
        return "aten.gelu", {}
    if gate == "sigmoid" and proportional:
        return ("aten.silu", {}) if close(slope, 1) else ("burnish.quick_gelu", {"alpha": slope})
    if gate == "sigmoid" and close(slope, _TANH_SLOPE) and _same(coefficients, (0, slope, 0, slope * _CUBIC)):
        return "aten.gelu", {"approximate": "tanh"}
    if (gate == "clamp" and _same(coefficients, _HARD)) or (gate == "hardsigmoid" and _same(coefficients, (0, 1))):
        return "aten.hardswish", {}
    if gate == "tanh(softplus)" and _same(coefficients, (0, 1)):
        return "aten.mish", {}
    return None, {}


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(map(close, a, b))


def _written(coefficients: Sequence[float]) -> str:
    powers = ("", "x", "x^2", "x^3")
    terms = [
        power if power and each == 1 else f"{each:.6g} {power}".strip()
        for each, power in zip(coefficients, powers, strict=False)
        if each != 0
    ]
    return " + ".join(terms).replace("+ -", "- ") or "0"


def _fuse(
    node: fx.Node, x: fx.Node, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any], rewriter: Rewriter
) -> None:
    """Replace `node`, which depends on `x` and numbers alone, by an operator on `x`; or say why not."""
    value = tensor_of(x)
    if value is None or not same_type(node, x):
        rewriter.skip(node, f"its type is not that of %{name_of(x)}")
        return
    if value.dtype not in (torch.float32, torch.float64):
        kind = str(value.dtype).removeprefix("torch.")
        rewriter.skip(node, f"it computes in {kind}, where {operator} rounds less often")
        return
    try:
        inner = own_interior(node, x)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    rewriter.replace(node, operator, (x, *args), kwargs, origins=inner, same_type=True)
    erase_unused(rewriter, inner)


RULES = (gated_activation, hardsigmoid, softplus, stable_softplus, overflowing_softplus)
