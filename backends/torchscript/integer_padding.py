"""Zeros around the input of a quantized 2-d convolution as the convolution's own padding.

The kernels for depthwise convolutions are fast only with the padding that keeps the size: 1 on all sides for 3 x 3,
2 for 5 x 5. So padding in front becomes the layer's own; where the sides differ, which 3 x 3 layers of stride 2 often
have, the weight becomes 5 x 5 with zeros around, which gives the same sums.

Not handled, and left as they are: other kernels whose sides differ, results whose size would change, padding of batch
or channels, negative padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from burnish.compiler.operators import arguments, operator_name

__all__ = ["Padding", "own_padding"]

_PADS = ("aten.pad", "aten.constant_pad_nd")


@dataclass(frozen=True, slots=True)
class Padding:
    """How to run a convolution.

    Attributes:
        input: what it reads.
        padding: its own, for every dimension.
        zeros: to put around its weight, as `torch.nn.functional.pad` has them; none: the weight stays.
    """

    input: fx.Node
    padding: list[int]
    zeros: tuple[int, ...] = ()

    def around(self, weight: torch.Tensor) -> torch.Tensor:
        """Return int8 `weight`, [O, I, height, width], with its zeros."""
        return torch.nn.functional.pad(weight, self.zeros) if self.zeros else weight


def own_padding(found: dict[str, Any], stride: Sequence[int], padding: list[int], dilation: Sequence[int]) -> Padding:
    """Return how to run the convolution of arguments `found`."""
    plain = Padding(found["input"], padding)
    name = operator_name(plain.input.target) if plain.input.op == "call_function" else ""
    if len(padding) != 2 or name not in _PADS:
        return plain
    given = arguments(plain.input)
    sides = list(given["pad"])
    zeros = given.get("mode", "constant") == "constant" and not given["value"]
    if not zeros or len(sides) != 4 or not all(isinstance(each, int) and each >= 0 for each in sides):
        return plain
    source = given["self"] if "self" in given else given["input"]
    left, right, top, bottom = (each + padding[1 - index // 2] for index, each in enumerate(sides))
    if (left, top) == (right, bottom):
        return Padding(source, [top, left])
    weight, sizes = found["weight"].meta["val"], source.meta["val"].shape[2:]
    depthwise = weight.shape[1] == 1 and found["groups"] > 1
    if not depthwise or tuple(weight.shape[2:]) != (3, 3) or list(dilation) != [1, 1] or max(left, top) > 2:
        return plain
    for size, total, step in zip(sizes, (top + bottom, left + right), stride, strict=True):
        if not isinstance(size, int) or (size + total - 3) // step != (size - 1) // step:
            return plain
    return Padding(source, [2, 2], (2 - left, left, 2 - top, top))
