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

import operator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import name_of
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.quantization.pairs import dequantized_constant, quantized_at_run_time

__all__ = ["QuantizeDynamic"]

_SELF_ATTENTION = find_operator("burnish.self_attention")
_LAYERS = ("aten.linear", "burnish.linear_act")
# Below this many inputs or outputs a product is too small to pay for the range of its input.
_SMALLEST = 16


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Quantize linear layers: int8 weights, uint8 inputs over the range of each call.

    Attributes:
        keep: patterns as in a shell, `*.head`, of nodes or weights that stay float.
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
        _Quantizer(rewriter, self.keep).run()


class _Quantizer:
    """One run of the pass."""

    def __init__(self, rewriter: Rewriter, keep: tuple[str, ...]) -> None:
        self.rewriter = rewriter
        self.keep = keep
        self.matched: set[str] = set()
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.weights: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        rewriter, names = self.rewriter, []
        for node in rewriter.nodes(*_LAYERS, "burnish.self_attention"):
            weight = arguments(node)["weight"]
            names.append(name_of(node))
            try:
                self._check(node, weight)
            except Refusal as refusal:
                rewriter.skip(node, str(refusal))
                continue
            with rewriter.rewrite("quantize-dynamic"):
                self._quantize(node, weight)
        unknown = [pattern for pattern in self.keep if pattern not in self.matched]
        if unknown:
            some = ", ".join(names[:5]) or "none"
            raise OptionError(f"pass 'quantize-dynamic': no layer matches {unknown[0]!r}: there are {some}")

    def _check(self, node: fx.Node, weight: fx.Node) -> None:
        """Raise Refusal where the layer stays float."""
        found = [
            pattern for pattern in self.keep if any(fnmatchcase(name_of(each), pattern) for each in (node, weight))
        ]
        self.matched |= set(found)
        if found:
            raise Refusal(f"it is to be kept: {found[0]!r}")
        value = read_constant(weight, "weight", self.rewriter)
        if value.dtype != torch.float32 or arguments(node)["input"].meta["val"].dtype != torch.float32:
            raise Refusal(f"it computes in {str(value.dtype).removeprefix('torch.')}, not in float32")
        if min(value.shape) < _SMALLEST:
            raise Refusal(f"its weight, {list(value.shape)}, is too small for integers to pay")
        if not bool(torch.isfinite(value).all()):
            raise Refusal("its weight is not finite")

    def _quantize(self, node: fx.Node, weight: fx.Node) -> None:
        rewriter = self.rewriter
        if node.target is _SELF_ATTENTION:
            node = self._apart(node)
        given = arguments(node)
        source = given["input"]
        if source not in self.inputs:
            self.inputs[source] = quantized_at_run_time(rewriter, node, source)
        if weight not in self.weights:
            held = rewriter.constant(weight)
            assert held is not None
            self.weights[weight] = dequantized_constant(rewriter, node, weight, held)
        args = (self.inputs[source], self.weights[weight], *node.args[2:])
        rewriter.set_arguments(node, args, {k: v for k, v in node.kwargs.items() if k not in ("input", "weight")})
        if not weight.users:
            rewriter.erase(weight)

    def _apart(self, node: fx.Node) -> fx.Node:
        """Replace self_attention by a linear layer, which is returned, and multi_head_attention."""
        rewriter, given = self.rewriter, arguments(node)
        heads, kv_heads = given["heads"], given["kv_heads"]
        size = given["weight"].meta["val"].shape[0] // (heads + 2 * kv_heads)
        layer = rewriter.insert(node, "aten.linear", (given["input"], given["weight"], given["bias"]))
        sizes = [heads * size, kv_heads * size, kv_heads * size]
        split = rewriter.insert(node, "aten.split_with_sizes", (layer, sizes, -1))
        parts = [rewriter.insert(node, operator.getitem, (split, index)) for index in range(3)]
        kwargs = {name: given[name] for name in ("heads", "kv_heads", "scale", "causal")}
        rewriter.replace(node, "burnish.multi_head_attention", (*parts, given["mask"]), kwargs, same_type=True)
        return layer
