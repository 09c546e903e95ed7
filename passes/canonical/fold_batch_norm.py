"""fold-batch-norm: put a batch norm in inference into the weights of a neighbouring convolution or linear layer.

Two rules. `fold-into-producer`: y = BN(layer(x)) scales the layer's output channels. `fold-into-consumers`:
layer(BN(x)) scales the input channels of every layer that reads the batch norm, and moves its shift into their biases;
with zero padding between, the shift would differ at the border, so that it must be zero there. The first rule goes
first, since padding does not matter to it. Weights are folded in float64 and rounded once.

Not handled, each with a reason in `burnish explain`: a layer whose output or weight is used elsewhere (folding would
duplicate it), training mode, statistics or weights that are no constants or that a run updates, half precision (the
rounding of new weights exceeds the contract), a linear layer whose features are not the batch norm's channels
(dimension 1), a reshape or another operator between the two, and means so large that folding loses precision. A batch
norm that folds nowhere stays: a multiplication and an addition instead would be two passes over memory where the
kernel of every backend makes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import name_of
from burnish.compiler.numerics import Numerics, Reassociates
from burnish.compiler.operators import arguments, find_operator, operator_name
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter, Rule
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import (
    BATCH_NORM_OPERATORS,
    BatchNorm,
    Refusal,
    read_batch_norm,
    read_constant,
)
from burnish.passes.canonical.weights import in_several_graphs

__all__ = ["FoldBatchNorm"]

_PADS = frozenset({find_operator("aten.pad"), find_operator("aten.constant_pad_nd")})
# How many times its result a batch norm's mean may be (see BatchNorm.cancellation) for one fold to keep the contract of
# 1e-5; measured on 64 channels: the drift reaches it at 90 behind a layer, and at 8 before one, whose products then
# have the size of the mean. Trained EfficientNet-Lite0 has 10 at the most.
_MOST_BEHIND, _MOST_BEFORE = 64.0, 8.0


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """Fold y = BN(layer(x)) and layer(BN(x)) into the layer's weight and bias."""

    name: ClassVar[str] = "fold-batch-norm"
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.BATCH_NORM_FOLDED})
    numerics: ClassVar[Numerics] = Reassociates(rtol=1e-5)
    idempotent: ClassVar[bool] = True

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module."""
        folder = _Folder()
        roots = tuple(find_operator(name) for name in BATCH_NORM_OPERATORS)
        rules = [Rule("fold-into-producer", roots, folder.behind), Rule("fold-into-consumers", roots, folder.before)]
        done = -1
        while done < rewriter.rewrites:  # of batch norms in a row, the last one folds first
            done = rewriter.rewrites
            rewriter.sweep(rules)
        # Only at the end: a batch norm that could not be folded at first may be, once its neighbour has been.
        for node in rewriter.nodes(*BATCH_NORM_OPERATORS):
            rewriter.skip(node, "; ".join(dict.fromkeys(folder.reasons.get(node, {}).values())))


@dataclass(frozen=True, slots=True)
class _Consumer:
    """A layer that reads a batch norm, and its constants."""

    layer: AffineLayer
    weight: torch.Tensor
    bias: torch.Tensor | None


class _Folder:
    """The two rules, and why they did not fire.

    Attributes:
        reasons: for each batch norm the latest reason of each rule.
    """

    def __init__(self) -> None:
        self.reasons: dict[fx.Node, dict[str, str]] = {}

    def behind(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Fold `node` into the layer that makes its input."""
        try:
            norm = read_batch_norm(node, rewriter)
            layer = AffineLayer.of(norm.input)
            if layer is None:
                raise Refusal("its input is not made by a convolution or linear layer")
            _check_cancellation(norm, _MOST_BEHIND)
            if len(layer.node.users) != 1:
                raise Refusal(_users_reason(layer.node))
            weight, bias = self._constants(layer, rewriter)
            split = layer.split(weight.double()) * norm.scale.reshape(layer.groups, -1, 1, 1)
            shift = norm.shift if bias is None else norm.shift + bias.double() * norm.scale
            new_weight, new_bias = _rounded(layer, split, weight), _rounded_bias(layer, shift, weight)
        except Refusal as refusal:
            self.reasons.setdefault(node, {})["behind"] = str(refusal)
            return
        with rewriter.rewrite("fold-into-producer"):
            norm.replace(rewriter, layer.with_constants(rewriter, new_weight, new_bias, [norm.node]))

    def before(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Fold `node` into all layers that read its result."""
        try:
            norm = read_batch_norm(node, rewriter)
            layers = self._consumers(norm, rewriter)
            _check_cancellation(norm, _MOST_BEFORE)
            folded = []
            for each in layers:
                layer = each.layer
                split = layer.split(each.weight.double())
                scaled = split * norm.scale.reshape(layer.groups, 1, -1, 1)
                shift = (split * norm.shift.reshape(layer.groups, 1, -1, 1)).sum((2, 3)).reshape(-1)
                shift = shift if each.bias is None else shift + each.bias.double()
                folded.append((layer, _rounded(layer, scaled, each.weight), _rounded_bias(layer, shift, each.weight)))
        except Refusal as refusal:
            self.reasons.setdefault(node, {})["before"] = str(refusal)
            return
        with rewriter.rewrite("fold-into-consumers"):
            for layer, new_weight, new_bias in folded:
                layer.with_constants(rewriter, new_weight, new_bias, [norm.node])
            norm.replace(rewriter, norm.input)

    def _consumers(self, norm: BatchNorm, rewriter: Rewriter) -> list[_Consumer]:
        """Return the layers behind `norm`, looking through pads.

        Raises:
            Refusal: some user is no layer, or one that cannot take the fold.
        """
        found: dict[fx.Node, _Consumer] = {}
        queue: list[tuple[fx.Node, fx.Node, str | None]] = [(user, norm.result, None) for user in norm.result.users]
        shifts = bool(norm.shift.any())
        while queue:
            user, source, pad = queue.pop()
            if user.target in _PADS:
                queue += [(each, user, _pad_reason(user) or pad) for each in user.users]
                continue
            layer = AffineLayer.of(user)
            if layer is None:
                raise Refusal(f"its result is used by {_described(user)}, into which it cannot be folded")
            if layer.weight is source or layer.bias is source:
                raise Refusal(f"{_described(user)} takes its result as a parameter")
            reason = pad or layer.uneven()
            if reason is not None and shifts:
                raise Refusal(f"{_described(user)} behind it {reason}")
            found[user] = _Consumer(layer, *self._constants(layer, rewriter))
        if not found:
            raise Refusal("nobody uses its result")
        return list(found.values())

    def _constants(self, layer: AffineLayer, rewriter: Rewriter) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias of `layer`, whose channels must be dimension 1 of its input and output."""
        called = _described(layer.node)
        if not layer.has_batch:
            raise Refusal(f"the channels of {called} are not dimension 1, which it normalizes")
        try:
            weight = read_constant(layer.weight, "weight", rewriter)
            bias = None if layer.bias is None else read_constant(layer.bias, "bias", rewriter)
        except Refusal as refusal:
            raise Refusal(f"{called} cannot be folded into: {refusal}") from None
        if len(layer.weight.users) > 1 or in_several_graphs(layer.weight, rewriter):
            raise Refusal(f"the weight of {called} is shared with another operator")
        return weight, bias


def _rounded(layer: AffineLayer, split: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return _finite(layer, layer.join(split, like.shape).to(like.dtype).contiguous())


def _rounded_bias(layer: AffineLayer, bias: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return _finite(layer, bias.to(like.dtype))


def _finite(layer: AffineLayer, value: torch.Tensor) -> torch.Tensor:
    # One pass over what may be millions of weights: NaN and infinity both come out at an end of the range.
    if value.numel() and not bool(torch.stack(torch.aminmax(value)).isfinite().all()):
        raise Refusal(f"the folded weights of {_described(layer.node)} would not be finite")
    return value


def _check_cancellation(norm: BatchNorm, most: float) -> None:
    if norm.cancellation > most:
        raise Refusal(
            f"its mean is {norm.cancellation:.0f} times as large as its result ({most:.0f} at most):"
            " folding would lose precision"
        )


def _pad_reason(node: fx.Node) -> str | None:
    """Say why a constant does not pass through a pad unchanged; None when it does.

    Raises:
        Refusal: the pad does not even keep a factor by channel.
    """
    given = arguments(node)
    amounts, rank = given["pad"], node.meta["val"].dim()
    if not all(isinstance(each, int) for each in amounts) or any(amounts[2 * (rank - 2) :]):
        raise Refusal(f"{_described(node)} pads other dimensions than the spatial ones")
    if given.get("mode", "constant") != "constant" or all(each <= 0 for each in amounts):
        return None
    if given["value"]:
        raise Refusal(f"{_described(node)} pads with another number than zero")
    return "is padded with zeros, which its shift would not reach"


def _users_reason(node: fx.Node) -> str:
    if any(user.op == "output" for user in node.users):
        return f"{_described(node)} is an output of the graph too"
    return f"{_described(node)} has {len(node.users)} users"


def _described(node: fx.Node) -> str:
    if node.op == "output":
        return "an output of the graph"
    return f"{operator_name(node.target)} %{name_of(node)}"
