"""smooth-quant: activation outliers of linear layers moved into their weights (Xiao et al., arXiv 2211.10438).

One scale has to fit all channels of an activation, while weights have one for every output. So channel j of what a
layer reads is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), over calibration data and over all layers that
read the value, and its column of the weights is multiplied by s_j. What makes the value does the division with its own
weights (see `makers`), so no operator is added, and the float function stays the same.

Not handled: a value that something besides linear layers reads, as a residual stream behind a norm (post-norm
transformers); what is made by an activation such as gelu. A multiplication of its own would cost a pass over memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import name_of
from burnish.compiler.numerics import Numerics, Reassociates
from burnish.compiler.operators import arguments
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.weights import described
from burnish.passes.quantization.makers import Maker, maker_of, readers_of
from burnish.passes.quantization.reach import channel_reach
from burnish.passes.quantization.rescaling import Rescaling, power_of_two

__all__ = ["ALPHA", "SmoothQuant", "smooth"]

ALPHA = 0.5
"""How much of an activation's range moves into the weights: 0 nothing, 1 all of it."""
_LINEAR = ("aten.linear", "burnish.linear_act", "burnish.self_attention")
# Larger factors come from channels that hardly ever are anything but zero.
_LARGEST = 1e4


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Pass):
    """Move the outliers of what linear layers read into their weights, before quantization.

    Attributes:
        alpha: how much of an activation's range moves: 0 levels the weights, 1 the activation.
        samples: how much of the calibration data to use at the most.
    """

    name: ClassVar[str] = "smooth-quant"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Reassociates()
    alpha: float = ALPHA
    samples: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"pass 'smooth-quant': option 'alpha' must be from 0 to 1, but is {self.alpha}")
        if self.samples < 1:
            raise OptionError(f"pass 'smooth-quant': option 'samples' must be 1 or more, but is {self.samples}")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            InputError: there are no calibration data, or they do not fit.
        """
        smooth(program, rewriter, context, alpha=self.alpha, samples=self.samples)


@dataclass(frozen=True, slots=True)
class _Smoothable:
    """A value, what makes it, and the layers that read it."""

    value: fx.Node
    maker: Maker
    readers: list[AffineLayer]


def smooth(program: Program, rewriter: Rewriter, context: Context, *, alpha: float, samples: int) -> None:
    """Move outliers into weights, as one rewrite.

    Args:
        program: what to run on the data; it is changed.
        rewriter: makes the change, and is told what was left and why.
        context: has the data.
        alpha: see `SmoothQuant`.
        samples: likewise.
    """
    with rewriter.rewrite("smooth-quant"):
        found = _smoothable(rewriter)
        if not found:
            return
        reach = channel_reach(
            program, context, dict.fromkeys((each.value for each in found), -1), samples, "smooth-quant"
        )
        rescaling = Rescaling(rewriter)
        for each in found:
            seen = reach.get(each.value)
            if seen is None or not bool(seen.isfinite().all()):
                trouble = "is not reached by the calibration data" if seen is None else "is not finite on them"
                rewriter.skip(each.readers[0].node, f"its input %{name_of(each.value)} {trouble}")
                continue
            weights = torch.stack([rescaling.columns(layer) for layer in each.readers]).amax(0)
            factors = _factors(each.maker.pooled(seen), each.maker.pooled(weights), alpha)
            rescaling.move(each.maker, each.readers, factors)
        rescaling.write()


def _smoothable(rewriter: Rewriter) -> list[_Smoothable]:
    """Return every value that can take factors; say of the others why not, at the first layer that reads them."""
    found: dict[fx.Node, _Smoothable | None] = {}
    for node in rewriter.nodes(*_LINEAR):
        value = arguments(node)["input"]
        if value in found:
            continue
        found[value] = None
        try:
            readers = readers_of(value, rewriter)
            other = next((each for each in readers if each.spatial), None)
            if other is not None:
                raise Refusal(f"its input {described(value)} is read by {described(other.node)} too")
            maker = maker_of(value, value.meta["val"].dim() - 1, rewriter).unclamped()
        except Refusal as refusal:
            rewriter.skip(node, str(refusal))
            continue
        found[value] = _Smoothable(value, maker, readers)
    return [each for each in found.values() if each is not None]


def _factors(activations: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return powers of two to divide channels by, float64 [C]; 1 where one is always zero, or nothing weighs it."""
    used = (activations > 0) & (weights > 0)
    if not bool(used.any()):
        return torch.ones_like(activations)
    found = torch.where(used, activations.pow(alpha) / weights.pow(1 - alpha), 1.0)
    # A factor that all channels share changes nothing, so their geometric mean can be 1.
    level = found[used].log().mean().exp()
    return power_of_two(torch.where(used, (found / level).clamp(1 / _LARGEST, _LARGEST), 1.0))
