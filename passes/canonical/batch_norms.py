"""Batch norms in inference, `y = scale * x + shift` by channel, whichever operator computes them.

Handles `aten.batch_norm`, `aten._native_batch_norm_legit_no_training` and `aten.native_batch_norm`. The operators
that always normalize by the batch's own statistics are recognised, to say that they cannot be folded.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter

__all__ = ["BATCH_NORM_OPERATORS", "BatchNorm", "Refusal", "read_batch_norm", "read_constant"]

BATCH_NORM_OPERATORS = (
    "aten.batch_norm",
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit.no_stats",
    "aten._native_batch_norm_legit_no_training",
)
_WIDE_ENOUGH = (torch.float32, torch.float64)


class Refusal(Exception):  # noqa: N818  a reason, not an error
    """Why something is left as it is."""


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """A batch norm that is a fixed affine map.

    Attributes:
        node: the operator.
        result: the node that holds y: the operator, or the getitem that takes its first result.
        input: the node of x.
        scale: [channels], float64.
        shift: [channels], float64.
        cancellation: how many times its mean exceeds its result: the largest |scale * mean| of a channel, in units of
            the result's root mean square, times the rounding of its dtype in units of that of float32.
        parts: the nodes of its constants.
    """

    node: fx.Node
    result: fx.Node
    input: fx.Node
    scale: torch.Tensor
    shift: torch.Tensor
    cancellation: float
    parts: tuple[fx.Node, ...]

    def replace(self, rewriter: Rewriter, by: fx.Node) -> None:
        """Replace the batch norm by `by`, and erase the constants that nobody needs any more."""
        rewriter.replace(self.result, by)
        if self.result is not self.node:
            rewriter.erase(self.node)
        for each in dict.fromkeys(self.parts):
            if not each.users:
                rewriter.erase(each)


def read_batch_norm(node: fx.Node, rewriter: Rewriter) -> BatchNorm:
    """Return the affine map that `node` computes.

    Raises:
        Refusal: it is not a fixed map, or computes in half precision.
    """
    given = arguments(node)
    if given.get("training", False) or given.get("running_mean") is None or given.get("running_var") is None:
        raise Refusal("it runs in training mode, by the statistics of the batch")
    dtype = given["input"].meta["val"].dtype
    if dtype not in _WIDE_ENOUGH:
        raise Refusal(f"it computes in {str(dtype).removeprefix('torch.')}, where folded weights would be rounded anew")
    result = _result(node)
    parts = tuple(each for key in ("weight", "bias", "running_mean", "running_var") if (each := given[key]) is not None)
    mean = read_constant(given["running_mean"], "running mean", rewriter).double()
    variance = read_constant(given["running_var"], "running variance", rewriter).double()
    gamma = _optional(given["weight"], "weight", rewriter, torch.ones_like(mean))
    beta = _optional(given["bias"], "bias", rewriter, torch.zeros_like(mean))
    scale = gamma / torch.sqrt(variance + given["eps"])
    rounding = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    cancellation = _cancellation(mean * scale, gamma, beta) * rounding
    return BatchNorm(node, result, given["input"], scale, beta - mean * scale, cancellation, parts)


def read_constant(value: Any, what: str, rewriter: Rewriter) -> torch.Tensor:
    """Return the tensor of a constant node; `what` names it in the reason.

    Raises:
        Refusal: it is computed, or a run updates it.
    """
    found = rewriter.constant(value)
    if found is not None:
        return found
    if isinstance(value, fx.Node) and value.op == "get_attr":
        raise Refusal(f"its {what} is a buffer that a run updates")
    raise Refusal(f"its {what} is not a constant")


def _optional(value: Any, what: str, rewriter: Rewriter, default: torch.Tensor) -> torch.Tensor:
    return default if value is None else read_constant(value, what, rewriter).double()


def _result(node: fx.Node) -> fx.Node:
    if isinstance(node.meta["val"], torch.Tensor):
        return node
    users = list(node.users)
    if len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0:
        return users[0]
    raise Refusal("its saved statistics are taken as results" if users else "nobody uses its result")


def _cancellation(offset: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> float:
    # Training leaves a result of mean beta and variance gamma squared in each channel.
    size = float((gamma.square() + beta.square()).mean().sqrt())
    worst = float(offset.abs().max()) if offset.numel() else 0.0
    return worst / size if size > 0.0 else 0.0
