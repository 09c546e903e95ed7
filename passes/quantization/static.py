"""quantize: layers, and what lies between them, in integers, with ranges taken from calibration data.

1. Networks whose multiply-adds are mostly convolutions are quantized whole, additions, products and pools included;
   in others only layers with constant weights are, convolutions where they count: there the rest is a small part of
   the time, and loses most accuracy.
2. Fused layers are taken apart where pairs have to stand between their parts (see `apart`).
3. Weights become int8, and biases int32 or corrected (see `layer_writer`).
4. A value that is always zero over the data stays float, and with it what reads it.

Where pairs stand is `context.target.integers`' business (see `plan`). Not handled: transposed convolutions, recurrent
layers, products of two activations (but for queries and keys where the target takes them), other dtypes than float32,
weights that are computed or updated by a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import fx

from burnish.compiler import interpreter
from burnish.compiler.context import Context
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.data import calibration_inputs
from burnish.compiler.errors import OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.graphs import calls, name_of, placeholders
from burnish.compiler.integers import IntegerRules
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.operators import arguments, find_operator
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal
from burnish.passes.quantization.apart import layer_apart, projection_apart, silu_apart
from burnish.passes.quantization.bias_correction import ChannelMean
from burnish.passes.quantization.depthwise import widen_depthwise_inputs
from burnish.passes.quantization.equalize import equalize
from burnish.passes.quantization.histograms import Histogram
from burnish.passes.quantization.keeping import Keeping, checked_weight
from burnish.passes.quantization.kinds import LAYERS, hides_pairs, kind_of
from burnish.passes.quantization.layer_writer import LayerWriter
from burnish.passes.quantization.makers import channel_dim, layer_of
from burnish.passes.quantization.pairs import quantized
from burnish.passes.quantization.plan import Plan, limited, source_of
from burnish.passes.quantization.ranges import Observer, Parameters, covered, parameters
from burnish.passes.quantization.smooth_quant import ALPHA, smooth

__all__ = ["Quantize"]

_CONV_ACT, _LINEAR_ACT = find_operator("burnish.conv_act"), find_operator("burnish.linear_act")
_SELF_ATTENTION = find_operator("burnish.self_attention")
_CANDIDATES = (*LAYERS, "burnish.conv_act", "burnish.self_attention")
_TARGETS = {find_operator(name) for name in _CANDIDATES}
# In a network of linear layers a convolution with this part of the multiply-adds is worth pairs of its own.
_PART = 0.01
_TRANSPOSED = "no runtime has an integer kernel for transposed convolutions"
_RECURRENT = "recurrent layers stay float: their errors would add up over the steps"
_ACTIVATIONS = "both its operands are activations: products of these stay float"
_FLOAT = {
    "aten.conv_transpose1d": _TRANSPOSED,
    "aten.conv_transpose2d.input": _TRANSPOSED,
    "aten.conv_transpose3d.input": _TRANSPOSED,
    "aten.lstm.input": _RECURRENT,
    "aten.gru.input": _RECURRENT,
    "aten.rnn_tanh.input": _RECURRENT,
    "aten.rnn_relu.input": _RECURRENT,
    "aten.matmul": _ACTIVATIONS,
    "aten.bmm": _ACTIVATIONS,
    "aten.scaled_dot_product_attention": _ACTIVATIONS,
}
# Between floats a product of matrices with fewer inputs or outputs is too small to pay.
_SMALLEST = 16


@dataclass(frozen=True, kw_only=True)
class Quantize(Pass):
    """Quantize with calibration data: int8 weights, activations of 8 bits per tensor.

    Attributes:
        preset: fast takes ranges from the extremes; balanced from the least squared error, corrects biases, and widens
            what depthwise convolutions read (see `depthwise`); accurate also runs `smooth-quant` before where linear
            layers do the most, and otherwise `equalize` where weights have one scale for a whole tensor.
        observer: how ranges are chosen from the data: min-max, moving-average, percentile, entropy or mse; by default
            as the preset has it.
        correct_biases: take off biases what rounding the weights adds on average; by default as the preset has it.
        keep: patterns as in a shell, `*.head`, of nodes, weights or modules that stay float.
        bits: of the weights, 2 to 8.
        symmetric: activations with zero point 0; by default as the target wants them.
        granularity: of the weights' scales: one for every output channel, or one for a whole tensor.
        samples: how much of the data to use at the most.
    """

    name: ClassVar[str] = "quantize"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    preset: Literal["fast", "balanced", "accurate"] = "balanced"
    observer: Observer | None = None
    correct_biases: bool | None = None
    keep: tuple[str, ...] = ()
    bits: int = 8
    symmetric: bool | None = None
    granularity: Literal["channel", "tensor"] = "channel"
    samples: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise OptionError(f"pass 'quantize': option 'bits' must be from 2 to 8, but is {self.bits}")
        if self.samples < 1:
            raise OptionError(f"pass 'quantize': option 'samples' must be 1 or more, but is {self.samples}")

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: a pattern of `keep` matches nothing.
            InputError: there are no calibration data, or they do not fit.
        """
        rules = context.target.integers
        if self.symmetric is not None:
            rules = replace(rules, symmetric=self.symmetric)
        _Quantizer(self, program, rewriter, context, rules).run()


class _Quantizer:
    """One run of the pass."""

    def __init__(
        self, options: Quantize, program: Program, rewriter: Rewriter, context: Context, rules: IntegerRules
    ) -> None:
        self.options = options
        self.program = program
        self.rewriter = rewriter
        self.context = context
        self.rules = rules
        self.keeping = Keeping(options.name, options.keep)
        # By dimension of the channels: a convolution and a linear layer may read one value.
        self.means: dict[fx.Node, dict[int, ChannelMean]] = {}
        fast = options.preset == "fast"
        self.observer: Observer = options.observer or ("min-max" if fast else "mse")
        self.corrects = not fast if options.correct_biases is None else options.correct_biases

    def run(self) -> None:
        shares = _shares(self.program)
        everything = sum(share for node, share in shares.items() if _is_convolution(node)) > 0.5
        accurate = self.options.preset == "accurate"
        # Levelling rows is what one scale for a whole weight needs; where every row has its own, it costs accuracy.
        if accurate and everything and self.options.granularity == "tensor":
            equalize(self.rewriter)
        elif accurate and not everything:
            smooth(self.program, self.rewriter, self.context, alpha=ALPHA, samples=self.options.samples)
        with self.rewriter.rewrite("quantize"):
            layers = self._layers(everything, shares)
            never = self._never(layers)
            self.keeping.finish()
            graphs = [graph for _, graph in self.program.all_graphs()]
            plan = Plan.of(graphs, layers, everything, self.rules, never)
            if not plan.readers:
                self.context.notes.append("quantize found nothing to quantize: there is no layer that it can take")
                return
            if self.options.preset != "fast" and self.options.granularity == "channel":
                samples = self.options.samples
                widen_depthwise_inputs(self.program, self.rewriter, self.context, plan.readers.keys(), samples)
            seen = self._observe(plan)
            while True:
                chosen = self._parameters(plan, seen)
                refused = self._refused(plan, chosen, seen)
                if not refused:
                    break
                layers, never = layers - refused, never | refused
                plan = Plan.of(graphs, layers, everything, self.rules, never)
            self._write(plan, chosen)

    def _layers(self, everything: bool, shares: dict[fx.Node, float]) -> set[fx.Node]:
        """Return the layers to quantize, taken apart."""
        rewriter, found = self.rewriter, set()
        for name, reason in _FLOAT.items():
            for node in rewriter.nodes(name):
                rewriter.skip(node, reason)
        for node in rewriter.nodes(*_CANDIDATES):
            given = arguments(node)
            try:
                self.keeping.check(node)
                if given.get("transposed", False):
                    raise Refusal(_TRANSPOSED)
                if _is_convolution(node) and not everything and (shares[node] < _PART or given["groups"] > 1):
                    raise Refusal("it is a small part of a network of linear layers: it stays float")
                among_linear = 1 if _is_convolution(node) else _SMALLEST
                checked_weight(node, self.rules.smallest if everything else among_linear, rewriter)
            except Refusal as refusal:
                rewriter.skip(node, str(refusal))
                continue
            if node.target is _SELF_ATTENTION:
                found.add(projection_apart(node, rewriter))
            elif node.target is _CONV_ACT or (node.target is _LINEAR_ACT and everything):
                found.add(layer_apart(node, rewriter))
            else:
                found.add(node)
        found |= self._attention()
        large = self.rules.large_silu
        if everything and large is not None:
            for node in rewriter.nodes("aten.silu"):
                sizes = node.meta["val"].shape[1:]
                behind = kind_of(source_of(arguments(node)["self"])[0]) is not None
                if behind and all(isinstance(each, int) for each in sizes) and math.prod(sizes) >= large:
                    silu_apart(node, rewriter)
        return found

    def _attention(self) -> set[fx.Node]:
        """Return the attentions whose queries and keys are to be quantized."""
        found = set()
        for node in self.rewriter.nodes("burnish.multi_head_attention"):
            try:
                self.keeping.check(node)
                if not self.rules.attention or kind_of(node) is None:
                    raise Refusal(_ACTIVATIONS)
            except Refusal as refusal:
                self.rewriter.skip(node, str(refusal))
            else:
                found.add(node)
        return found

    def _never(self, layers: set[fx.Node]) -> set[fx.Node]:
        """Return the operators other than layers that the user keeps float."""
        found = set()
        for node in self.rewriter.nodes():
            if node not in layers and kind_of(node) in self.rules.operators:
                try:
                    self.keeping.check(node)
                except Refusal as refusal:
                    self.rewriter.skip(node, str(refusal))
                    found.add(node)
        return found

    def _observe(self, plan: Plan) -> dict[fx.Node, Histogram]:
        """Run the Program on the calibration data."""
        seen = {node: Histogram() for node in plan.readers}
        read = [layer for node in plan.operators if self.corrects and (layer := layer_of(node)) is not None]
        for each in read:
            dim = channel_dim(each)
            self.means.setdefault(arguments(each.node)["input"], {})[dim] = ChannelMean(dim)
        observed = seen.keys() | self.means.keys()
        inputs = [node for graph in self.program.graphs.values() for node in placeholders(graph) if node in observed]

        def observe(node: fx.Node, value: object) -> None:
            if node in observed and isinstance(value, torch.Tensor):
                if node in seen:
                    seen[node].add(value)
                for mean in self.means.get(node, {}).values():
                    mean.add(value)

        options = self.options
        with working("calibrating", self.context.progress):
            for batch in calibration_inputs(self.program, self.context, options.samples, options.name):
                for node in inputs:
                    observe(node, batch.get(str(node.target)))
                interpreter.run(self.program, batch, observe)
        return seen

    def _parameters(self, plan: Plan, seen: dict[fx.Node, Histogram]) -> dict[fx.Node, Parameters]:
        """Return what quantizes each value that has a usable range."""
        ranges = {}
        signed = replace(self.rules, activations=torch.int8, symmetric=True)
        rules = {node: signed if node in plan.signed else self.rules for node in plan.readers}
        for node in plan.readers:
            found = covered(seen[node], self.observer, rules[node])
            if found is not None:
                ranges[node] = found
        for group in plan.groups:
            known = [ranges[each] for each in group if each in ranges]
            if known:
                widest = min(low for low, _ in known), max(high for _, high in known)
                ranges.update(dict.fromkeys(group & ranges.keys(), widest))
        return {node: parameters(*each, rules[node]) for node, each in ranges.items()}

    def _refused(self, plan: Plan, chosen: dict[fx.Node, Parameters], seen: dict[fx.Node, Histogram]) -> set[fx.Node]:
        """Return the operators that read or give a value without usable range, and say why."""
        found = set()
        for node, values in plan.operators.items():
            without = next((value for value in values if value not in chosen), None)
            if without is not None:
                self.rewriter.skip(node, f"%{name_of(without)} {_trouble(seen[without])}")
                found.add(node)
        return found

    def _write(self, plan: Plan, chosen: dict[fx.Node, Parameters]) -> None:
        rewriter = self.rewriter
        per_channel = self.options.granularity == "channel"
        writer = LayerWriter(rewriter, self.options.bits, per_channel, self.rules.results, self.means)
        for node, (source, *_) in plan.operators.items():
            if kind_of(node) in ("convolution", "linear"):
                writer.write(node, chosen[source].scale, limited(node) in plan.whole)
        for value, readers in plan.readers.items():
            users = list(value.users) if value in plan.whole else list(readers)
            new = quantized(rewriter, value, chosen[value])
            for user in users:
                rewriter.redirect(user, value, new)
            if self.rules.again:
                self._again(new, chosen[value])

    def _again(self, start: fx.Node, numbers: Parameters) -> None:
        """Write the pair that ends in `start` again behind rearrangements that hide it; no value changes."""
        waiting = [start]
        while waiting:
            for user in list(waiting.pop().users):
                if kind_of(user) != "rearrangement":
                    continue
                if not hides_pairs(user):
                    waiting.append(user)
                    continue
                readers = list(user.users)
                new = quantized(self.rewriter, user, numbers)
                for reader in readers:
                    self.rewriter.redirect(reader, user, new)
                waiting.append(new)


def _shares(program: Program) -> dict[fx.Node, float]:
    """Return the part of the multiply-adds of all layers that each of them has."""
    cost = program.cost().at_samples() if program.samples else program.cost()
    figures = {(each.graph, each.name): each.figures.macs for each in cost.nodes}
    found = {
        node: float(estimated(figures.get((name, name_of(node)), 0)))
        for name, graph in program.all_graphs()
        for node in calls(graph)
        if node.target in _TARGETS
    }
    total = sum(found.values())
    return {node: count / total if total else 0.0 for node, count in found.items()}


def _is_convolution(node: fx.Node) -> bool:
    return node.target is _CONV_ACT or kind_of(node) == "convolution"


def _trouble(seen: Histogram) -> str:
    if not seen.finite:
        return "is not finite on the calibration data"
    if seen.is_empty:
        return "is computed from nothing that the calibration data reach"
    return "is always zero" if seen.low == seen.high == 0 else "is too small for a scale on the calibration data"
