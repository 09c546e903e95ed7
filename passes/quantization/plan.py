"""Where pairs of quantize and dequantize go: which operators compute in integers, and which values that needs.

1. Layers that nothing speaks against compute in integers; so do, where everything is to be quantized, the operators
   behind them that the target has an integer kernel for. Activations without one compute in floats between pairs.
2. What they read is quantized, at its source: before the rearrangements that it went through.
3. What they give is quantized where the target asks for that, behind an activation that only limits it.
4. Kinds of operators of which the target wants one scale share it over all operands and the result.

The first result of a linear layer stays float unless an operator in integers reads it: kernels give floats as fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx
from torch import fx

from burnish.compiler.graphs import calls
from burnish.compiler.integers import IntegerRules
from burnish.compiler.operators import find_operator
from burnish.passes.fusion.matching import only_user
from burnish.passes.quantization.kinds import kind_of, operands

__all__ = ["Plan", "limited", "source_of"]

_ROLL = find_operator("aten.roll")


@dataclass(slots=True)
class Plan:
    """What to quantize.

    Attributes:
        operators: what computes in integers, with the values that have to be quantized for it.
        readers: by value to quantize: the nodes that have to read it quantized.
        whole: values of which all users have to read the quantized form, or the kernel that makes them gives floats.
        groups: values with one scale.
        signed: values that become int8 with zero point 0, whatever the rules say of others.
    """

    operators: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    readers: dict[fx.Node, dict[fx.Node, None]] = field(default_factory=dict)
    whole: set[fx.Node] = field(default_factory=set)
    groups: list[set[fx.Node]] = field(default_factory=list)
    signed: set[fx.Node] = field(default_factory=set)

    @staticmethod
    def of(
        graphs: Iterable[fx.Graph], layers: set[fx.Node], everything: bool, rules: IntegerRules, never: set[fx.Node]
    ) -> Plan:
        """Make a plan.

        Args:
            graphs: where.
            layers: the layers that compute in integers.
            everything: quantize the operators between layers too.
            rules: of the target.
            never: operators that must stay float.
        """
        plan, shared = Plan(), nx.Graph()
        behind: set[fx.Node] = set()  # what computes in integers, and what follows it without leaving the layer
        for graph in graphs:
            for node in calls(graph):
                kind = kind_of(node)
                follows = kind is not None and not behind.isdisjoint(operands(node))
                wanted = everything and kind in rules.operators and node not in never
                if node in layers or (wanted and follows):
                    plan.operators[node] = []
                    behind.add(node)
                elif follows and kind in ("limit", "activation", "rearrangement"):
                    behind.add(node)
        for node, values in plan.operators.items():
            kind = kind_of(node)
            for each in plan._read(node, rules):
                source, path = source_of(each)
                if kind == "attention":
                    plan.signed.add(each)
                if kind == "attention" or (rules.behind_rolls and source.target is _ROLL):
                    source, path = each, None
                plan.readers.setdefault(source, {})[path if path is not None else node] = None
                values.append(source)
            if rules.results and kind not in ("linear", "attention"):
                result = limited(node)
                plan.readers.setdefault(result, {})
                plan.whole.add(result)
                values.append(result)
            if kind in rules.shared:
                nx.add_path(shared, [*values, limited(node)])
        plan.groups = [found for each in nx.connected_components(shared) if (found := each & plan.readers.keys())]
        return plan

    def _read(self, node: fx.Node, rules: IntegerRules) -> list[fx.Node]:
        """Return the operands of `node` to be quantized."""
        given = operands(node)
        if kind_of(node) != "add" or not rules.skip_only:
            return given
        layers = [each for each in given if each in self.operators and kind_of(each) in ("convolution", "linear")]
        own = next((each for each in layers if only_user(each) is node), None)
        return [each for each in given if each is not own]


def source_of(value: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return what `value` is a rearrangement of, and the first node on the way from there; None where there is none."""
    path: fx.Node | None = None
    while kind_of(value) == "rearrangement":
        path, value = value, value.all_input_nodes[0]
    return value, path


def limited(node: fx.Node) -> fx.Node:
    """Return the only user of `node` that limits it, a relu or clamp; `node` itself where there is none."""
    user = only_user(node)
    return user if user is not None and kind_of(user) == "limit" else node
