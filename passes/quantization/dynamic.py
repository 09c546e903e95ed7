"""quantize-dynamic: products with constant weights in integers, with ranges of the activations taken at run time.

Weights become int8 with a scale for every output feature (rows); inputs become uint8 with the range that they have in
the call. No data is needed. What this gives on which backend stands in docs/passes/quantize-dynamic.md.

1. `aten.linear` and `burnish.linear_act`: both operands get pairs; bias, residual and activation stay float.
2. `burnish.self_attention`: its projection becomes a quantized linear layer, and the rest `multi_head_attention`.
3. Layers that read one input share its pair.
4. A weight that several layers share is quantized once; one that something else reads too (an embedding) stays for
   that.

Not handled: convolutions, for which the ranges cost more than the integers save; products of two activations; other
dtypes than float32; weights that are computed or updated by a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import name_of
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.quantization.apart import projection_apart
from burnish.passes.quantization.keeping import Keeping, checked_weight
from burnish.passes.quantization.pairs import dequantized_constant, quantized_at_run_time
from burnish.passes.quantization.weights import quantized_rows, row_scales

__all__ = ["QuantizeDynamic"]

_SELF_ATTENTION = find_operator("burnish.self_attention")
_LAYERS = ("aten.linear", "burnish.linear_act")
# Below this many inputs or outputs a product is too small to pay for the range of its input.
_SMALLEST = 16


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Quantize linear layers: int8 weights, uint8 inputs over the range of each call.

    Attributes:
        keep: patterns as in a shell, `*.head`, of nodes, weights or modules that stay float.
    """

    name: ClassVar[str] = "quantize-dynamic"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    keep: tuple[str, ...] = ()

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: a pattern of `keep` matches no layer; the message names some that there are.
        """
        _Quantizer(rewriter, Keeping(self.name, self.keep)).run()


class _Quantizer:
    """One run of the pass."""

    def __init__(self, rewriter: Rewriter, keeping: Keeping) -> None:
        self.rewriter = rewriter
        self.keeping = keeping
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.weights: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        rewriter = self.rewriter
        for node in rewriter.nodes(*_LAYERS, "burnish.self_attention"):
            try:
                self.keeping.check(node)
                checked_weight(node, _SMALLEST, rewriter)
            except Refusal as refusal:
                rewriter.skip(node, str(refusal))
                continue
            with rewriter.rewrite("quantize-dynamic"):
                self._quantize(node, arguments(node)["weight"])
        self.keeping.finish()

    def _quantize(self, node: fx.Node, weight: fx.Node) -> None:
        rewriter = self.rewriter
        if node.target is _SELF_ATTENTION:
            node = projection_apart(node, rewriter)
        given = arguments(node)
        source = given["input"]
        if source not in self.inputs:
            self.inputs[source] = quantized_at_run_time(rewriter, node, source)
        if weight not in self.weights:
            held = rewriter.constant(weight)
            assert held is not None
            scales = row_scales(held)
            integers = quantized_rows(held, scales)
            self.weights[weight] = dequantized_constant(rewriter, node, name_of(weight), weight, integers, scales)
        args = (self.inputs[source], self.weights[weight], *node.args[2:])
        rewriter.set_arguments(node, args, {k: v for k, v in node.kwargs.items() if k not in ("input", "weight")})
        if not weight.users:
            rewriter.erase(weight)
