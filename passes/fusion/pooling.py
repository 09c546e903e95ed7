"""Rules: average poolings whose one window covers everything become means over the spatial dimensions.

The result keeps its shape, with every spatial size 1. Whether a window covers everything is asked of sizes that are
numbers; an adaptive pooling to size 1 may have dynamic ones.

Not handled: half precision, where sum and quotient may be rounded elsewhere; an average that counts the padding, or
has a divisor of its own, which is a multiple of the mean; max poolings.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.canonical.types import repeated, shape_of, tensor_of

__all__ = ["RULES"]

_AVERAGE = {"aten.avg_pool1d": 1, "aten.avg_pool2d": 2, "aten.avg_pool3d": 3}
_ADAPTIVE = {
    "aten.adaptive_avg_pool1d": 1,
    "aten.adaptive_avg_pool2d": 2,
    "aten.adaptive_avg_pool3d": 3,
    "aten._adaptive_avg_pool2d": 2,
    "aten._adaptive_avg_pool3d": 3,
}


@rule(*_AVERAGE)
def average_of_all(node: fx.Node, rewriter: Rewriter) -> None:
    """An average pooling with one window, over all that there is, is a mean."""
    found, rank = arguments(node), _AVERAGE[str(node.target).removesuffix(".default")]
    source, result = shape_of(found["self"]), shape_of(node)
    if source is None or result is None:
        return
    sizes = [size for size in source[-rank:] if isinstance(size, int)]
    if len(sizes) < rank or any(not isinstance(size, int) or size != 1 for size in result[-rank:]):
        return
    kernel, padding = repeated(found["kernel_size"], rank), repeated(found["padding"], rank)
    # The first window starts in the padding, and takes so much less of the values.
    reach = [size - pad for size, pad in zip(kernel, padding, strict=True)]
    count = math.prod(sizes)
    divisor = found.get("divisor_override")
    if any(each < size for each, size in zip(reach, sizes, strict=True)):
        rewriter.skip(node, f"its window covers {_by(reach)} values of {_by(sizes)}")
    elif divisor is not None and divisor != count:
        rewriter.skip(node, f"it divides the sum of {count} values by {divisor}")
    elif divisor is None and found["count_include_pad"] and any(padding):
        rewriter.skip(node, "its average counts the padding")
    else:
        _mean(node, rank, rewriter)


@rule(*_ADAPTIVE)
def adaptive_average_of_all(node: fx.Node, rewriter: Rewriter) -> None:
    """An adaptive average pooling to size 1 is a mean."""
    found, rank = arguments(node), _ADAPTIVE[str(node.target).removesuffix(".default")]
    wanted = repeated(found["output_size"], rank)
    if all(type(size) is int and size == 1 for size in wanted):
        _mean(node, rank, rewriter)


def _mean(node: fx.Node, rank: int, rewriter: Rewriter) -> None:
    value = tensor_of(node)
    if value is None:
        return
    if value.dtype not in (torch.float32, torch.float64):
        kind = str(value.dtype).removeprefix("torch.")
        rewriter.skip(node, f"it computes in {kind}, where a mean may round differently")
        return
    dims = list(range(value.dim() - rank, value.dim()))
    rewriter.replace(node, "aten.mean.dim", (node.args[0], dims, True), {}, same_type=True)


def _by(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))


RULES = (average_of_all, adaptive_average_of_all)
