"""Rule: zeros around the input of a convolution become the convolution's own padding.

Frameworks that pad by name ("same", as TensorFlow has it) leave such pads before every convolution, each a copy of its
input.

Not handled: two sides of a dimension that differ, which no convolution of ATen can have; half precision, where another
kernel rounds differently; transposed convolutions, whose padding takes away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.types import repeated, tensor_of
from burnish.passes.fusion.matching import calls, erase_unused

__all__ = ["RULES"]

_CONVOLUTIONS = {f"aten.conv{rank}d": rank for rank in (1, 2, 3)}


@rule(*_CONVOLUTIONS)
def padding_before_convolution(node: fx.Node, rewriter: Rewriter) -> None:
    """conv(constant_pad_nd(x, pad, 0)) is a convolution with padding."""
    found, rank = arguments(node), _CONVOLUTIONS[str(node.target).removesuffix(".default")]
    pad = found["input"]
    if not isinstance(pad, fx.Node) or not calls(pad, "aten.constant_pad_nd"):
        return
    try:
        given = arguments(pad)
        sides = _sides(given, rank, rewriter.constant(found["weight"]))
    except Refusal as refusal:
        rewriter.skip(node, str(refusal))
        return
    own = repeated(found["padding"], rank)
    if tensor_of(node) is None or any(type(each) is not int for each in own):
        return
    padding = [before + more for before, more in zip(own, sides, strict=True)]
    geometry = (found["stride"], padding, found["dilation"], found["groups"])
    args = (given["self"], found["weight"], found["bias"], *geometry)
    rewriter.replace(node, node.target, args, {}, origins=[pad], same_type=True)
    erase_unused(rewriter, [pad])


def _sides(given: dict[str, Any], rank: int, weight: torch.Tensor | None) -> list[int]:
    """Return the zeros on either side of each spatial dimension.

    Raises:
        Refusal: a convolution cannot have the same.
    """
    amounts = given["pad"]
    if given["value"] not in (0, False):
        raise Refusal(f"its input is padded with {given['value']}, not with zeros")
    if any(type(each) is not int for each in amounts):
        raise Refusal("its input is padded by sizes")
    if len(amounts) > 2 * rank and any(amounts[2 * rank :]):
        raise Refusal("its input is padded in other dimensions than the spatial ones")
    if min(amounts) < 0:
        raise Refusal("its input is cut")
    if amounts[::2] != amounts[1::2]:
        raise Refusal(f"its input is padded by {amounts}, which differs from side to side")
    if given["self"].meta["val"].dtype not in (torch.float32, torch.float64):
        raise Refusal("it computes in half precision, where another kernel may round differently")
    # The zeros of a pad make NaN of an infinite weight, those of a convolution may not.
    if weight is None or not bool(weight.isfinite().all()):
        raise Refusal("its weight is not known to be finite")
    sides = amounts[::2][:rank]
    return [*([0] * (rank - len(sides))), *reversed(sides)]


RULES = (padding_before_convolution,)
