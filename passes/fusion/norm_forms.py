"""Spelled-out normalizations, read back: what is normalized, over which dimensions, with which eps.

Read are x / sqrt(v + eps) and (x - mean(x)) / sqrt(v + eps), where the root may stand as sqrt, rsqrt or a power, v is a
mean of squares or an operator's variance, and operands stand in any order. What is divided may have its weight already.

Not handled: means without keepdim; means spelled as a sum times a number; norms by aten.linalg_vector_norm; a bound
(clamp) where eps would be added; half precision that is cast to float32 for its mean square alone (T5 in bfloat16).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import tensor_of
from burnish.passes.fusion.matching import addends, calls, factors, number_of

__all__ = ["Normalization", "normalization"]

_VARIANCES = ("aten.var.correction", "aten.var.dim")
_DEVIATIONS = ("aten.std.correction", "aten.std.dim")
_PAIRS = ("aten.var_mean.correction", "aten.var_mean.dim")


@dataclass(frozen=True, slots=True)
class Normalization:
    """`source`, less its mean where `centered`, divided by the root of its mean square plus `eps`, all over `dims`.

    `weight` is the constant that it is multiplied by before the division, None where there is none.
    """

    source: fx.Node
    dims: tuple[int, ...]
    eps: float
    centered: bool
    weight: fx.Node | None


@dataclass(frozen=True, slots=True)
class _Moment:
    """The mean of the squares of `source` over `dims`; its variance, with this `correction`, where that is a number."""

    source: fx.Node
    dims: tuple[int, ...]
    correction: float | None


def normalization(node: fx.Node, rewriter: Rewriter) -> Normalization | None:
    """Return the normalization whose last operator is `node`, without weight and bias; None when it is none.

    Raises:
        Refusal: it is one that the operators of norms do not compute.
    """
    for top, radicand, weight in _weighted(_quotients(node, rewriter)):
        for variance, eps in _with_eps(radicand, rewriter):
            moment = _moment(variance)
            found = None if moment is None else _matched(top, moment)
            if found is None:
                _refuse_difference(top, variance)
            elif moment is not None and moment.correction:
                raise Refusal("its variance is unbiased")
            elif not eps > 0:
                raise Refusal("it adds no eps to the variance")
            else:
                return Normalization(*found, eps=eps, centered=found[0] is not top, weight=weight)
    _refuse_eps_outside(node, rewriter)
    return None


def _quotients(node: fx.Node, rewriter: Rewriter) -> Iterator[tuple[fx.Node, Any]]:
    """Yield (a, u) such that `node` is a / sqrt(u)."""
    found: list[tuple[Any, Any]] = [(top, _inverse_root(other, rewriter)) for top, other in factors(node)]
    if calls(node, "aten.div.Tensor"):
        found.append((node.args[0], _root(node.args[1], rewriter)))
    yield from ((top, radicand) for top, radicand in found if isinstance(top, fx.Node) and radicand is not None)


def _weighted(quotients: Iterable[tuple[fx.Node, Any]]) -> Iterator[tuple[fx.Node, Any, fx.Node | None]]:
    """Yield each (a, u), with the constant w for (w a, u); first those that are taken whole."""
    found = list(quotients)
    yield from ((top, radicand, None) for top, radicand in found)
    for top, radicand in found:
        for value, weight in factors(top):
            if isinstance(value, fx.Node) and isinstance(weight, fx.Node) and weight.op == "get_attr":
                yield value, radicand, weight


def _root(value: Any, rewriter: Rewriter) -> Any:
    return value.args[0] if calls(value, "aten.sqrt") else _power(value, 0.5, rewriter)


def _inverse_root(value: Any, rewriter: Rewriter) -> Any:
    if calls(value, "aten.rsqrt"):
        return value.args[0]
    if calls(value, "aten.reciprocal"):
        return _root(value.args[0], rewriter)
    if calls(value, "aten.div.Tensor") and number_of(value.args[0], rewriter) == 1:
        return _root(value.args[1], rewriter)
    return _power(value, -0.5, rewriter)


def _power(value: Any, exponent: float, rewriter: Rewriter) -> Any:
    """Return what `value` raises to this power."""
    if not calls(value, "aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor"):
        return None
    return value.args[0] if number_of(value.args[1], rewriter) == exponent else None


def _with_eps(radicand: Any, rewriter: Rewriter) -> Iterator[tuple[Any, float]]:
    for variance, other in addends(radicand):
        eps = number_of(other, rewriter)
        if eps is not None:
            yield variance, eps
    yield radicand, 0.0


def _matched(top: fx.Node, moment: _Moment) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Return what is normalized, and over which dimensions, if `moment` is the one that belongs to `top`."""
    centered = _centered(top)
    if moment.correction is not None:
        return centered if centered == (moment.source, moment.dims) else None
    if centered is not None and centered[1] == moment.dims:
        return centered if moment.source is top or _centered(moment.source) == centered else None
    return (top, moment.dims) if moment.source is top else None


def _centered(value: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Return (x, dims) where `value` is x - mean(x, dims)."""
    if not calls(value, "aten.sub.Tensor") or arguments(value)["alpha"] != 1:
        return None
    source, mean = value.args[:2]
    dims = _mean_dims(mean, source)
    return None if dims is None else (source, dims)


def _mean_dims(mean: Any, source: Any) -> tuple[int, ...] | None:
    """Return the dimensions over which `mean` is the mean of `source`."""
    if calls(mean, "aten.mean.dim"):
        found = arguments(mean)
        other_type = found["dtype"] is not None and found["dtype"] != getattr(tensor_of(source), "dtype", None)
        return None if found["self"] is not source or other_type else _dims(found)
    pair = _result(mean, 1)
    if pair is None or pair.args[0] is not source:
        return None
    return _dims(arguments(pair))


def _moment(value: Any) -> _Moment | None:
    pair = _result(value, 0)
    if pair is not None or calls(value, *_VARIANCES):
        return _variance(value if pair is None else pair)
    if not calls(value, "aten.mean.dim"):
        return None
    square = value.args[0]
    dims = _mean_dims(value, square)
    if calls(square, "aten.mul.Tensor"):
        source = square.args[0] if square.args[0] is square.args[1] else None
    elif calls(square, "aten.square"):
        source = square.args[0]
    else:
        is_square = calls(square, "aten.pow.Tensor_Scalar") and square.args[1] == 2
        source = square.args[0] if is_square else None
    return None if source is None or dims is None else _Moment(source, dims, None)


def _variance(node: fx.Node) -> _Moment | None:
    found = arguments(node)
    dims = _dims(found)
    correction = found["correction"] if "correction" in found else int(found["unbiased"])
    # What is left out is a correction by 1.
    return None if dims is None else _Moment(found["self"], dims, 1.0 if correction is None else float(correction))


def _result(value: Any, index: int) -> Any:
    """Return the call of var_mean of which `value` is a result: 0 is the variance, 1 the mean."""
    if not calls(value, "getitem") or value.args[1] != index:
        return None
    return value.args[0] if calls(value.args[0], *_PAIRS) else None


def _dims(found: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the dimensions of a reduction with keepdim, from 0, in order; None when it does not keep them."""
    value = tensor_of(found["self"])
    if value is None or not found["keepdim"]:
        return None
    dims = found["dim"] or range(value.dim())
    return tuple(sorted(each % value.dim() for each in dims))


def _refuse_difference(top: fx.Node, variance: Any) -> None:
    """Raise Refusal where the variance is mean(x^2) - mean(x)^2."""
    centered = _centered(top)
    moment = _moment(variance.args[0]) if calls(variance, "aten.sub.Tensor") else None
    if centered is not None and moment is not None and centered == (moment.source, moment.dims):
        raise Refusal("its variance is a difference of means, which cancels where a norm does not")


def _refuse_eps_outside(node: fx.Node, rewriter: Rewriter) -> None:
    """Raise Refusal where eps is added to the root."""
    whole: Any = node.args[0]
    if not calls(node, "aten.div.Tensor") or not isinstance(whole, fx.Node):
        return
    for top, divisor, _ in _weighted([(whole, node.args[1])]):
        for deviation, eps in _with_eps(divisor, rewriter):
            spread = calls(deviation, *_DEVIATIONS)
            moment = _variance(deviation) if spread else _moment(_root(deviation, rewriter))
            if moment is not None and _matched(top, moment) is not None:
                raise Refusal("its eps is added outside the root" if eps else "it adds no eps to the variance")
