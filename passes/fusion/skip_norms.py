"""Rules: A residual sum, or a sum of embeddings, and the norm that reads it become one operator.

`burnish.skip_layer_norm` and `burnish.skip_rms_norm` stand where the sum stood and give both the norm and the sum, so
the residual stream may go on behind them; of several norms of one sum the first is joined to it. The bias of a linear
layer in the sum goes into the operator, which adds it on the way. `burnish.embedding_layer_norm` looks up, adds and
normalizes what describes a token.

Not handled: norms over several dimensions; sums that broadcast, or that scale an operand; a view between sum and norm;
embeddings whose sum something else reads too (two of one shape may be a residual sum); RMSNorm of embeddings; in half
precision, embeddings (whose order changes) and the bias of a linear layer (which is rounded elsewhere).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import same_shape, same_type, shape_of, tensor_of
from burnish.passes.canonical.weights import WIDE
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_FUSED = {"aten.layer_norm": "burnish.skip_layer_norm", "aten.rms_norm": "burnish.skip_rms_norm"}


@rule("aten.layer_norm")
def embedding_norm(node: fx.Node, rewriter: Rewriter) -> None:
    """The layer norm of a sum of embeddings, and of at most one other value, is one operator."""
    found = arguments(node)
    total: Any = found["input"]
    leaves, sums = _flattened(total)
    embeddings = [each for each in leaves if calls(each, "aten.embedding")]
    others = [each for each in leaves if each not in embeddings]
    constant = bool(others) and all(each.op == "get_attr" for each in others)
    if not embeddings or (len(embeddings) < 2 and not constant):
        return
    try:
        embeddings = _checked_embeddings(embeddings, others, total, found["normalized_shape"])
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    lookups = [arguments(each) for each in embeddings]
    ids, tables = [each["indices"] for each in lookups], [each["weight"] for each in lookups]
    parameters = (found[name] for name in ("normalized_shape", "weight", "bias", "eps"))
    args = (ids, tables, others[0] if others else None, *parameters)
    rewriter.replace(node, "burnish.embedding_layer_norm", args, {}, origins=[*embeddings, *sums], same_type=True)
    erase_unused(rewriter, [total])


@rule(*_FUSED)
def residual_norm(node: fx.Node, rewriter: Rewriter) -> None:
    """The norm of a sum is one operator, which gives the sum too."""
    found = arguments(node)
    total: Any = found["input"]
    if not calls(total, "aten.add.Tensor"):
        return
    given = arguments(total)
    left, right = given["self"], given["other"]
    if tensor_of(left) is None or tensor_of(right) is None:
        return
    try:
        eps = _checked_sum(node, total, left, right)
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    branch, skip = (right, left) if _rank(right, total) > _rank(left, total) else (left, right)
    bias = None
    if _has_own_bias(branch, total):
        layer = arguments(branch)
        bias = layer["bias"]
        branch = rewriter.replace(branch, "aten.linear", (layer["input"], layer["weight"]), {}, same_type=True)
    parameters = [found[name] for name in ("weight", "bias") if name in found]
    args = (branch, skip, bias, found["normalized_shape"], *parameters, eps)
    fused = rewriter.insert(total, _FUSED[operator_name(node.target)], args, origins=[node, total], like=(node, total))
    rewriter.replace(node, operator.getitem, (fused, 0), {}, same_type=True)
    if total.users:
        rewriter.replace(total, operator.getitem, (fused, 1), {}, same_type=True)
    else:
        rewriter.erase(total)


def _flattened(total: Any) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return the operands of a sum of tensors, in order, and the sums, which nothing else reads but for the first."""
    found: list[fx.Node] = []
    sums: list[fx.Node] = []
    stack = [total]
    while stack:
        value = stack.pop()
        if _is_sum(value) and (value is total or len(value.users) == 1):
            sums.append(value)
            stack += [value.args[1], value.args[0]]
        else:
            found.append(value)
    return found, sums


def _is_sum(value: Any) -> bool:
    return (
        calls(value, "aten.add.Tensor")
        and arguments(value)["alpha"] == 1
        and all(tensor_of(each) is not None for each in value.args[:2])
    )


def _checked_embeddings(
    embeddings: list[fx.Node], others: list[fx.Node], total: fx.Node, normalized: list[Any]
) -> list[fx.Node]:
    """Return `embeddings`, one that has the shape of the sum first; raises Refusal where they cannot be joined."""
    kind = total.meta["val"]
    for each in (total, *embeddings):
        if len(each.users) > 1:
            raise Refusal(f"%{name_of(each)} has {len(each.users)} users")
    if len(others) > 1:
        raise Refusal(f"it adds {len(others)} values that are no embeddings")
    if kind.dtype not in WIDE:
        raise Refusal(f"it computes in {_dtype(kind)}, where the order of a sum matters")
    if any(each.meta["val"].dtype != kind.dtype for each in (*embeddings, *others)):
        raise Refusal("it adds values of several dtypes")
    if len(normalized) != 1:
        raise Refusal(f"it normalizes over {len(normalized)} dimensions")
    if kind.dim() != 3:
        raise Refusal(f"its sum has {kind.dim()} dimensions, not batch, token and feature")
    whole = [each for each in embeddings if same_shape(shape_of(each), kind.shape)]
    if not whole:
        raise Refusal("no embedding has the shape of the sum")
    if any(not same_shape(each.meta["val"].shape[-1:], kind.shape[-1:]) for each in embeddings):
        raise Refusal("an embedding is broadcast over the features")
    if any(arguments(each)["scale_grad_by_freq"] or arguments(each)["sparse"] for each in embeddings):
        raise Refusal("an embedding asks for another gradient")
    rest = list(embeddings)
    rest.remove(whole[0])
    return [whole[0], *rest]


def _checked_sum(node: fx.Node, total: fx.Node, left: fx.Node, right: fx.Node) -> float:
    """Return the eps of a norm; raises Refusal where it and its sum cannot be joined."""
    found = arguments(node)
    if arguments(total)["alpha"] != 1:
        raise Refusal(f"%{name_of(total)} scales an operand")
    for each in (left, right):
        if not same_type(each, total):
            raise Refusal(f"%{name_of(each)} does not have the type of the sum: it is no residual stream")
    sizes = found["normalized_shape"]
    if len(sizes) != 1:
        raise Refusal(f"it normalizes over {len(sizes)} dimensions")
    if isinstance(sizes[0], fx.Node):
        raise Refusal("it normalizes over a dynamic size")
    for name in ("weight", "bias"):
        value = found.get(name)
        if isinstance(value, fx.Node) and value.op == "call_function" and not value < total:
            raise Refusal(f"its {name} is computed after the sum")
    if found["eps"] is not None:
        return float(found["eps"])
    dtype = total.meta["val"].dtype
    if dtype not in WIDE:
        raise Refusal(f"its eps is the default, which in {_dtype(total.meta['val'])} is that of another dtype")
    return torch.finfo(dtype).eps


def _rank(value: fx.Node, total: fx.Node) -> int:
    """Tell how much `value` looks like the branch that is added to a residual stream."""
    return 2 if _has_own_bias(value, total) else int(len(value.users) == 1 and value.op == "call_function")


def _has_own_bias(value: fx.Node, total: fx.Node) -> bool:
    """Tell whether `value` is a linear layer whose bias can go into the norm of `total`."""
    if not calls(value, "aten.linear") or arguments(value)["bias"] is None or list(value.users) != [total]:
        return False
    return total.args[0] is not total.args[1] and total.meta["val"].dtype in WIDE


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


RULES = (embedding_norm, residual_norm)
