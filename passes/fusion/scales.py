"""Rules: What scales or shifts a layer by number or by channel goes into its weight and bias.

`y = layer(x) * c + d` folds behind (also through permutations and regroupings that keep the channels apart, and numbers
through any), `layer(x * c + d)` before it; factors in a row merge. Layers are those of `AffineLayer`.

Not handled: a layer or scaled value with several users; a weight that another operator reads, unless only a shift
goes into the bias; a shift before a convolution that pads; a factor or shift that varies by anything but channel;
half precision, unless the new weight is exact (a power of 2); shifts so large that folding would lose precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.types import same_shape, same_type, shape_of, tensor_of
from burnish.passes.canonical.weights import WIDE, own_constant, rounded, single_user
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_MUL = {find_operator(f"aten.mul.{kind}") for kind in ("Tensor", "Scalar")}
_DIV = {find_operator(f"aten.div.{kind}") for kind in ("Tensor", "Scalar")}
_ADD = {find_operator(f"aten.add.{kind}") for kind in ("Tensor", "Scalar")}
_SUB = {find_operator(f"aten.sub.{kind}") for kind in ("Tensor", "Scalar")}
_RSUB = find_operator("aten.rsub.Scalar")
_NEG = find_operator("aten.neg")
_FACTORS = tuple(f"aten.{name}.{kind}" for name in ("mul", "div") for kind in ("Tensor", "Scalar"))
_SUMS = tuple(f"aten.{name}.{kind}" for name in ("add", "sub") for kind in ("Tensor", "Scalar"))
_AFFINE = (*_FACTORS, *_SUMS, "aten.rsub.Scalar", "aten.neg")
_LAYERS = ("aten.linear", "aten.convolution", *(f"aten.conv{n}d{end}" for n in (1, 2, 3) for end in ("", ".padding")))
_LAYERS = (*_LAYERS, "aten.conv_transpose1d", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
# How many views between a layer and its factor are followed: heads take two.
_VIEWS = 4
# How many times a layer's result a shift may be. Folding changes the order of sums, and each is then rounded in units
# of the shift; fold-batch-norm measured the same two bounds.
_MOST_BEHIND, _MOST_BEFORE = 64.0, 8.0
# Factors in a row stay where one is larger than this, or as small: x * 1e-30 * 1e-30 * 1e30 is zero.
_MOST_FACTOR = 1e10


@dataclass(frozen=True, slots=True)
class _Affine:
    """One operator seen as scale * source + shift.

    Attributes:
        source: the node that it scales.
        scale: float64, a number or what broadcasts to the source; None for 1.
        shift: likewise; None for 0.
        origins: the operator, and the constants that it reads.
    """

    source: fx.Node
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    origins: tuple[fx.Node, ...]


@rule(*_FACTORS)
def factors_in_a_row(node: fx.Node, rewriter: Rewriter) -> None:
    """X * c * d is x * (c * d), for numbers."""
    outer = _affine(node, rewriter)
    inner = None if outer is None else _affine(outer.source, rewriter)
    if outer is None or inner is None or outer.scale is None or inner.scale is None or inner.shift is not None:
        return
    if outer.scale.numel() != 1 or inner.scale.numel() != 1:
        return
    if not same_type(node, outer.source) or not same_type(outer.source, inner.source):
        return
    factor = float(outer.scale.reshape(()) * inner.scale.reshape(()))
    try:
        single_user(outer.source)
        _check_number(factor, node.meta["val"].dtype)
        for each in (inner.scale, outer.scale):
            _check_moderate(float(each))
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    origins = [*inner.origins, *outer.origins[1:]]
    if factor == 1.0:
        rewriter.replace(node, inner.source)
    else:
        rewriter.replace(node, "aten.mul.Tensor", (inner.source, factor), {}, origins=origins, same_type=True)
    erase_unused(rewriter, origins)


@rule(*_AFFINE)
def scale_behind_layer(node: fx.Node, rewriter: Rewriter) -> None:
    """layer(x) * scale + shift, with views between, is a layer with other constants."""
    affine = _affine(node, rewriter)
    if affine is None:
        return
    views: list[fx.Node] = []
    source = affine.source
    while calls(source, "aten.permute", "aten.reshape") and len(views) < _VIEWS:
        views.append(source)
        source = arguments(source)["self"]
    layer = AffineLayer.of(source) if isinstance(source, fx.Node) else None
    if layer is None:
        return
    try:
        if not same_type(node, affine.source):
            raise Refusal("its constant changes the type of the layer's result")
        for each in (layer.node, *views):
            single_user(each)
        axis: int | None = _channel_axis(layer)
        for view in reversed(views):
            axis = _axis_behind(view, axis)
        channels, rank = int(layer.node.meta["val"].shape[_channel_axis(layer)]), node.meta["val"].dim()
        scale = _by_channel(affine.scale, axis, rank, channels)
        shift = _by_channel(affine.shift, axis, rank, channels)
        weight, bias = _folded_behind(layer, scale, shift, rewriter)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    new = layer.with_constants(rewriter, weight, bias, affine.origins)
    rewriter.replace(node, views[0] if views else new)
    erase_unused(rewriter, affine.origins[1:])


@rule(*_LAYERS)
def scale_before_layer(node: fx.Node, rewriter: Rewriter) -> None:
    """layer(x * scale + shift) is a layer with other constants."""
    layer, source = AffineLayer.of(node), arguments(node)["input"]
    affine = _affine(source, rewriter)
    if layer is None or affine is None:
        return
    try:
        if not same_type(source, affine.source):
            raise Refusal("a constant changes the type of its input")
        single_user(source)
        if affine.shift is not None and (reason := layer.uneven()):
            raise Refusal(f"it {reason}")
        weight = own_constant(layer.weight, "weight", rewriter)
        split = layer.split(weight.double())
        rank, axis, channels = source.meta["val"].dim(), _channel_axis(layer), layer.groups * split.shape[2]
        scale = _by_channel(affine.scale, axis, rank, channels)
        shift = _by_channel(affine.shift, axis, rank, channels)
        new_bias = None
        if shift is not None:
            old = _bias(layer, rewriter)
            added = (split * shift.reshape(layer.groups, 1, -1, 1)).sum((2, 3)).reshape(-1)
            new_bias = _shifted(layer, split, old, added, _MOST_BEFORE)
        new_weight = None
        if scale is not None:
            new_weight = rounded(layer.join(split * scale.reshape(layer.groups, 1, -1, 1), weight.shape), weight.dtype)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    layer.with_constants(rewriter, new_weight, new_bias, affine.origins, affine.source)
    erase_unused(rewriter, affine.origins)


def _affine(node: Any, rewriter: Rewriter) -> _Affine | None:
    """Return `node` as a scaled and shifted tensor; None when it is none, or by nothing constant."""
    value = tensor_of(node)
    if value is None or not value.is_floating_point() or node.op != "call_function":
        return None
    found, target = arguments(node), node.target
    if target is _NEG:
        return _Affine(found["self"], torch.tensor(-1.0, dtype=torch.float64), None, (node,))
    if target not in _MUL | _DIV | _ADD | _SUB and target is not _RSUB:
        return None
    first, second, swapped = found["self"], found["other"], False
    constant = _constant(second, rewriter)
    if constant is None:
        constant, swapped = _constant(first, rewriter), True
        first, second = second, first
    if constant is None or tensor_of(first) is None or first.op == "get_attr":
        return None
    origins = (node, second) if isinstance(second, fx.Node) else (node,)
    if target in _MUL:
        return _Affine(first, constant, None, origins)
    if target in _DIV:
        return None if swapped else _Affine(first, 1.0 / constant, None, origins)
    if type(found["alpha"]) not in (int, float):
        return None
    alpha = float(found["alpha"])
    # self + alpha * other, self - alpha * other, other - alpha * self: what the tensor, and what the constant counts.
    by_tensor, by_constant = (alpha, 1.0) if swapped else (1.0, alpha)
    if target in _SUB:
        by_tensor, by_constant = (-by_tensor, by_constant) if swapped else (by_tensor, -by_constant)
    elif target is _RSUB:
        by_tensor, by_constant = -alpha, 1.0
    scale = None if by_tensor == 1.0 else torch.tensor(by_tensor, dtype=torch.float64)
    return _Affine(first, scale, constant * by_constant, origins)


def _constant(value: Any, rewriter: Rewriter) -> torch.Tensor | None:
    if type(value) in (int, float):
        return torch.tensor(float(value), dtype=torch.float64)
    found = rewriter.constant(value)
    return found.double() if found is not None and found.is_floating_point() else None


def _check_number(factor: float, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    if not limits.tiny <= abs(factor) <= limits.max:
        raise Refusal(f"the product of its factors is {factor:g}, outside the range of its dtype")
    if dtype not in WIDE and float(torch.tensor(factor, dtype=torch.float64).frexp().mantissa.abs()) != 0.5:
        raise Refusal("it computes in half precision, where factors in a row round differently")


def _check_moderate(factor: float) -> None:
    if not 1 / _MOST_FACTOR <= abs(factor) <= _MOST_FACTOR:
        raise Refusal(f"one of its factors is {factor:g}, which may take values to zero or infinity on the way")


def _channel_axis(layer: AffineLayer) -> int:
    """Return the dimension of the channels, of input and output alike."""
    return int(layer.node.meta["val"].dim()) - layer.spatial - 1


def _axis_behind(view: fx.Node, axis: int | None) -> int | None:
    """Return where the dimension `axis` of a view's input is in its result; None where it is split or merged."""
    if axis is None:
        return None
    before, after = shape_of(arguments(view)["self"]), shape_of(view)
    assert before is not None and after is not None
    if calls(view, "aten.permute"):
        return [each % len(before) for each in arguments(view)["dims"]].index(axis)
    if axis < len(after) and same_shape(before[: axis + 1], after[: axis + 1]):
        return axis
    from_end = axis - len(before)
    kept = -from_end <= len(after) and same_shape(before[from_end:], after[from_end:])
    return len(after) + from_end if kept else None


def _by_channel(value: torch.Tensor | None, axis: int | None, rank: int, channels: int) -> torch.Tensor | None:
    """Return a constant as a vector over the channels, which are dimension `axis` of a tensor of this rank.

    Raises:
        Refusal: it varies along another dimension.
    """
    if value is None or value.numel() == 1:
        return None if value is None else value.reshape(1).expand(channels)
    varies = [index + rank - value.dim() for index, size in enumerate(value.shape) if size != 1]
    if axis is None or varies != [axis]:
        raise Refusal("its constant varies by more than the layer's channels")
    return value.reshape(-1)


def _folded_behind(
    layer: AffineLayer, scale: torch.Tensor | None, shift: torch.Tensor | None, rewriter: Rewriter
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the weight and bias of scale * layer + shift, None where they stay.

    Raises:
        Refusal: they are no constants of the layer's own, or cannot be rounded to its dtype.
    """
    old = _bias(layer, rewriter)
    if scale is None:
        assert shift is not None
        weight = read_constant(layer.weight, "weight", rewriter)
        return None, _shifted(layer, layer.split(weight.double()), old, shift, _MOST_BEHIND)
    weight = own_constant(layer.weight, "weight", rewriter)
    split = layer.split(weight.double()) * scale.reshape(layer.groups, -1, 1, 1)
    new = rounded(layer.join(split, weight.shape), weight.dtype)
    scaled = None if old is None else old * scale
    if shift is not None:
        return new, _shifted(layer, split, scaled, shift, _MOST_BEHIND)
    return new, None if scaled is None else rounded(scaled, weight.dtype)


def _bias(layer: AffineLayer, rewriter: Rewriter) -> torch.Tensor | None:
    return None if layer.bias is None else read_constant(layer.bias, "bias", rewriter).double()


def _shifted(
    layer: AffineLayer, split: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor, most: float
) -> torch.Tensor:
    """Return bias + shift; `split` is the weight whose products they are added to."""
    dtype = layer.weight.meta["val"].dtype
    if dtype not in WIDE:
        raise Refusal("it computes in half precision, where a sum in the layer rounds differently")
    total = shift if bias is None else bias + shift
    # Of inputs of size 1, each channel's products have the size of its weights' norm. Neither may the shift be large
    # beside what it is added to, nor the bias beside the sum.
    products, old = split.square().sum((2, 3)).reshape(-1), torch.zeros(()) if bias is None else bias
    times = max(_ratio(shift, products + old.square()), _ratio(old, products + total.square()))
    times *= torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    if times > most:
        raise Refusal(
            f"its shift is {times:.0f} times the layer's result ({most:.0f} at most): folding would lose precision"
        )
    return rounded(total, dtype)


def _ratio(value: torch.Tensor, squares: torch.Tensor) -> float:
    """Return the largest element of a tensor over the root mean square of another, given squared."""
    largest, size = (float(value.abs().max()), float(squares.mean().sqrt())) if squares.numel() else (0.0, 1.0)
    return largest / size if size else math.inf if largest else 0.0


RULES = (factors_in_a_row, scale_behind_layer, scale_before_layer)
