"""equalize: ranges of weights levelled across layers (Nagel et al., arXiv 1906.04721, section 4.1).

Output channel i of one layer and input channel i of the next may share a factor: with r1 and r2 the largest weights
there, dividing the former by s = sqrt(r1 / r2) and multiplying the latter by it makes both sqrt(r1 r2). Repeated over
all pairs until nothing moves, which also settles chains of depthwise convolutions. Between the two may stand what a
positive factor passes (see `makers`). Factors are rounded to powers of two. A bias counts as a weight of its channel:
what it adds has to fit the range of the activation too.

Needs no data. Not handled: clamps at a number (relu6), activations such as silu, residual sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Numerics, Reassociates
from burnish.compiler.operators import arguments
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.canonical.weights import described
from burnish.passes.quantization.makers import Maker, channel_dim, layer_of, maker_of, readers_of
from burnish.passes.quantization.rescaling import Rescaling, power_of_two

__all__ = ["Equalize", "equalize"]

_ROUNDS = 50
# Smaller weights count as zero, so that no factor blows them up.
_SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Level the ranges of weights across layers, before quantization."""

    name: ClassVar[str] = "equalize"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Reassociates()

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module."""
        equalize(rewriter)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer, as maker of a value, and the layers that read it."""

    maker: Maker
    first: AffineLayer
    second: list[AffineLayer]


def equalize(rewriter: Rewriter) -> None:
    """Level ranges across layers, as one rewrite; the rewriter is told what was left and why."""
    with rewriter.rewrite("equalize"):
        pairs = _pairs(rewriter)
        rescaling = Rescaling(rewriter)
        for _ in range(_ROUNDS):
            if sum(_level(pair, rescaling) for pair in pairs) == 0:
                break
        rescaling.write()


def _pairs(rewriter: Rewriter) -> list[_Pair]:
    found: dict[fx.Node, _Pair | None] = {}
    for node in rewriter.nodes():
        layer = layer_of(node)
        value = arguments(node)["input"] if layer is not None else None
        if layer is None or value is None or value in found:
            continue
        found[value] = None
        try:
            readers = readers_of(value, rewriter)
            if len({channel_dim(each) for each in readers}) > 1:
                raise Refusal(f"the layers that read {described(value)} count its channels differently")
            maker = maker_of(value, channel_dim(layer), rewriter).unclamped()
            if not isinstance(maker.origin, AffineLayer):
                raise Refusal(f"{described(maker.origin)} before it is no layer")
        except Refusal as refusal:
            rewriter.skip(node, str(refusal))
            continue
        found[value] = _Pair(maker, maker.origin, readers)
    return [each for each in found.values() if each is not None]


def _level(pair: _Pair, rescaling: Rescaling) -> bool:
    """Bring the ranges of a pair within a factor of two of each other; tell whether that changed anything."""
    maker = pair.maker
    before = rescaling.rows(pair.first)[maker.rows]
    behind = maker.pooled(torch.stack([rescaling.columns(each) for each in pair.second]).amax(0))
    used = torch.minimum(before, behind) > _SMALLEST
    factors = power_of_two(torch.where(used, before / behind, 1.0).sqrt())
    rescaling.move(maker, pair.second, factors)
    return bool((factors != 1).any())
