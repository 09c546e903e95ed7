"""Rules: norms that a model spells out become aten.layer_norm, aten.rms_norm or aten.group_norm.

One rule reads the normalization itself, others give it a weight, a bias, and the shape that a group norm has. So they
fire wherever a norm without weight or bias is followed by one.

Over the channels of what has more dimensions behind them there is no operator: a layer norm between two permutations
takes the place, which in ONNX Runtime takes half to nine tenths of the time, and.

Not handled: half precision, where the operators round less often than what they replace (a norm that casts to float32
and back is one in float32, between its casts); weights and biases that are computed; RMSNorm over groups; and what
stands in norm_forms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.types import same_shape, same_type, shape_of, tensor_of
from burnish.passes.fusion.interiors import own_interior
from burnish.passes.fusion.matching import addends, calls, erase_unused, factors
from burnish.passes.fusion.norm_forms import Normalization, normalization

__all__ = ["RULES"]

_LAYER, _RMS, _GROUP = "aten.layer_norm", "aten.rms_norm", "aten.group_norm"
_ARGUMENTS = {
    _LAYER: ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
    _RMS: ("input", "normalized_shape", "weight", "eps"),
    _GROUP: ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled"),
}


@rule("aten.mul.Tensor", "aten.div.Tensor")
def spelled_out_norm(node: fx.Node, rewriter: Rewriter) -> None:
    """(x - mean) / sqrt(var + eps) is a layer norm or an instance norm, x / sqrt(mean(x^2) + eps) is an RMSNorm."""
    try:
        found = normalization(node, rewriter)
        if found is None:
            return
        _replace_norm(node, found, own_interior(node, found.source), rewriter)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))


@rule("aten.mul.Tensor")
def weight_of_norm(node: fx.Node, rewriter: Rewriter) -> None:
    """A norm without weight, times a constant by channel, is a norm with that weight."""
    for value, weight in factors(node):
        if _absorbed(node, value, weight, "weight", rewriter):
            return


@rule("aten.add.Tensor")
def bias_of_norm(node: fx.Node, rewriter: Rewriter) -> None:
    """A norm without bias, plus a constant by channel, is a norm with that bias."""
    for value, bias in addends(node):
        if _absorbed(node, value, bias, "bias", rewriter):
            return


@rule("aten.reshape")
def groups_of_channels(node: fx.Node, rewriter: Rewriter) -> None:
    """A norm of x seen as [N, groups, ...], over all but two dimensions, is a group norm of x."""
    norm: Any = node.args[0]
    if not calls(norm, _LAYER, _GROUP):
        return
    found = arguments(norm)
    split: Any = found["input"]
    if not calls(split, "aten.reshape") or found["weight"] is not None or found["bias"] is not None:
        return
    x: Any = split.args[0]
    shape, grouped = shape_of(x), shape_of(split)
    if shape is None or grouped is None or len(shape) < 3 or len(grouped) < 3 or not same_shape(shape, shape_of(node)):
        return
    channels, groups = shape[1], grouped[1]
    covered = (
        found["num_groups"] == groups if calls(norm, _GROUP) else len(found["normalized_shape"]) == len(grouped) - 2
    )
    if not covered or not isinstance(groups, int) or not same_shape(shape[:1], grouped[:1]):
        return
    try:
        if not isinstance(channels, int) or channels % groups:
            raise Refusal(f"{channels} channels do not make {groups} groups")
        _check_users(split, norm)
        _check_type(node, _GROUP)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    rewriter.replace(node, _GROUP, (x, groups, None, None, found["eps"]), {}, origins=[split, norm], same_type=True)
    erase_unused(rewriter, [norm])


def _replace_norm(node: fx.Node, found: Normalization, inner: list[fx.Node], rewriter: Rewriter) -> None:
    """Put an operator in the place of `node`; raises Refusal where there is none."""
    x, dims, eps = found.source, found.dims, found.eps
    if not same_type(node, x):
        raise Refusal(f"its type is not that of %{name_of(x)}")
    form = _LAYER if found.centered else _RMS
    _check_type(node, form)
    shape = tuple(x.meta["val"].shape)
    rank, sizes = len(shape), [shape[each] for each in dims]
    fixed = all(isinstance(size, int) for size in sizes)
    spatial = found.centered and rank > 2 and dims == tuple(range(2, rank)) and isinstance(shape[1], int)
    parameters = (None, None, eps) if found.centered else (None, eps)
    args: tuple[Any, ...]
    if spatial and (rank > 3 or not fixed):
        form, args = _GROUP, (x, shape[1], *parameters)
    elif not fixed:
        raise Refusal("it normalizes over a dynamic size")
    elif dims == tuple(range(rank - len(dims), rank)):
        args = (x, sizes, *parameters)
    elif dims == (1,):
        last = rewriter.insert(node, "aten.permute", (x, [0, *range(2, rank), 1]), origins=[node])
        norm = rewriter.insert(node, form, (last, sizes, *parameters), origins=[node, *inner], like=last)
        form, args = "aten.permute", (norm, [0, rank - 1, *range(1, rank - 1)])
    else:
        raise Refusal(f"it normalizes over the dimensions {list(dims)}, which are not the last ones")
    if found.weight is not None:
        plain = rewriter.insert(node, form, args, origins=[node, *inner], like=node)
        form, args = "aten.mul.Tensor", (plain, found.weight)
    rewriter.replace(node, form, args, {}, origins=inner, same_type=True)
    erase_unused(rewriter, inner)


def _absorbed(node: fx.Node, value: Any, parameter: Any, name: str, rewriter: Rewriter) -> bool:
    """Make `parameter` the weight or bias of the norm `value`, which may be permuted; or say why not."""
    permuted = calls(value, "aten.permute")
    norm = value.args[0] if permuted else value
    wanted = _parameter_shape(norm, value.args[1] if permuted else None)
    given, kind = shape_of(parameter), tensor_of(value)
    if wanted is None or given is None or kind is None or len(given) > kind.dim():
        return False
    found = arguments(norm)
    if found.get(name, norm) is not None or (name == "weight" and found.get("bias") is not None):
        return False
    padded = [*[1] * (kind.dim() - len(given)), *given]
    own = [size for size in padded if not isinstance(size, int) or size != 1]
    # Sizes of 1 stretch: what has the one size that matters elsewhere, or nowhere, is no parameter.
    if not same_shape(padded, wanted) or not own:
        return False
    try:
        if parameter.op != "get_attr":
            raise Refusal(f"its {name} is computed")
        if not same_type(node, value) or parameter.meta["val"].dtype != kind.dtype:
            raise Refusal(f"its {name} has another dtype than its input")
        _check_type(node, operator_name(norm.target))
        _check_users(norm, value)
        sizes = [norm.meta["val"].shape[1]] if calls(norm, _GROUP) else found["normalized_shape"]
        changed = {name: parameter}
        if not same_shape(given, sizes):
            constant = read_constant(parameter, name, rewriter).reshape(sizes)
            changed[name] = rewriter.set_constant(node.graph, name_of(parameter), constant, [parameter])
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return False
    target = norm.target
    values = tuple(changed.get(each, found[each]) for each in _ARGUMENTS[operator_name(norm.target)])
    if permuted:
        new = rewriter.insert(node, target, values, origins=[node, norm], like=norm)
        rewriter.replace(node, "aten.permute", (new, value.args[1]), {}, origins=[value], same_type=True)
    else:
        rewriter.replace(node, target, values, {}, origins=[norm], same_type=True)
    erase_unused(rewriter, [value, parameter])
    return True


def _parameter_shape(norm: Any, permutation: Any) -> list[Any] | None:
    """Return the shape, with as many dimensions as the norm, of what scales or shifts it by channel.

    `permutation` is what was done to the norm's result, if anything. None when `norm` is none.
    """
    shape = shape_of(norm)
    if shape is None or not calls(norm, *_ARGUMENTS):
        return None
    if calls(norm, _GROUP):
        wanted = [1, shape[1], *[1] * (len(shape) - 2)]
    else:
        count = len(arguments(norm)["normalized_shape"])
        if permutation is not None and count > 1:
            return None
        wanted = [*[1] * (len(shape) - count), *shape[len(shape) - count :]]
    return wanted if permutation is None else [wanted[each] for each in permutation]


def _check_users(*nodes: fx.Node) -> None:
    for node in nodes:
        if len(node.users) > 1:
            raise Refusal(f"%{name_of(node)} has {len(node.users)} users")


def _check_type(node: fx.Node, form: str) -> None:
    dtype = node.meta["val"].dtype
    if dtype not in (torch.float32, torch.float64):
        raise Refusal(f"it computes in {str(dtype).removeprefix('torch.')}, where {form} rounds less often")


RULES = (spelled_out_norm, weight_of_norm, bias_of_norm, groups_of_channels)
