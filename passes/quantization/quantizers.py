"""The quantizers of a Program, and copies of the Program in which only some of them quantize.

A quantizer is the pair behind one activation, or the integers of one weight with what they did to the biases of the
layers that read it (bias correction, int32). Bypassed, an activation's readers read it as it is, and a weight's layers
read the floats that the passes of quantization leave among the Program's constants.

Not handled: weights of which the floats are gone, as in a Program that was saved, or a model that came quantized: they
stay integers, and are listed by `fixed_weights`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from burnish.compiler.graphs import calls, name_of
from burnish.compiler.operators import arguments, operator_name
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.quantization.bias_correction import bias_holder
from burnish.passes.quantization.kinds import CONVOLUTIONS, LAYERS, kind_of, operands
from burnish.passes.quantization.plan import limited, source_of
from burnish.passes.quantization.rescaling import set_argument

__all__ = ["Quantizer", "fixed_weights", "quantizers", "with_only"]

_INTEGERS = ".integers"
_PASSES = ("quantize", "quantize-dynamic")


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One quantizer.

    Attributes:
        name: of the activation or the weight.
        kind: what it quantizes.
        graph: where it stands.
        nodes: its dequantize operators, by name.
        readers: the operators that compute with the result, by name.
        layers: what the option `keep` of a pass of quantization would call these readers.
        keep: `layers`, and what computes an activation in integers where the target wants the results of these as
            integers: with all of them float the quantizer is gone.
        operators: what they are.
        module: path of the module that the activation or the weight comes from.
    """

    name: str
    kind: Literal["activation", "weight"]
    graph: str
    nodes: tuple[str, ...]
    readers: tuple[str, ...]
    layers: tuple[str, ...]
    keep: tuple[str, ...]
    operators: tuple[str, ...]
    module: str


def quantizers(program: Program) -> list[Quantizer]:
    """Return the quantizers of `program` that can be bypassed, in graph order."""
    found = []
    for label, graph in program.all_graphs():
        groups: dict[fx.Node, list[fx.Node]] = {}
        for node in calls(graph):
            if _is_dequantize(node):
                groups.setdefault(arguments(node)["input"], []).append(node)
        for integers, nodes in groups.items():
            value = _value_of(integers)
            if value is not None:
                found.append(_quantizer(label, "activation", name_of(value), value, nodes))
            elif integers.op == "get_attr" and _floats_of(program, integers) is not None:
                found.append(_quantizer(label, "weight", _float_name(integers), integers, nodes))
    weighted = {reader for each in found if each.kind == "weight" for reader in each.readers}
    biases = _biases(program, weighted)
    return [each for each in found if not biases.intersection(each.nodes)]


def fixed_weights(program: Program, every: Collection[Quantizer]) -> list[str]:
    """Return the names of the constants that stay integers, as their floats are gone.

    Args:
        program: the Program.
        every: its quantizers.
    """
    weighted = {reader for each in every if each.kind == "weight" for reader in each.readers}
    biases = _biases(program, weighted)
    found = []
    for _, graph in program.all_graphs():
        for node in calls(graph):
            if _is_dequantize(node) and name_of(node) not in biases:
                integers = arguments(node)["input"]
                if integers.op == "get_attr" and _floats_of(program, integers) is None:
                    found.append(name_of(integers))
    return found


def with_only(program: Program, every: Collection[Quantizer], kept: Collection[Quantizer]) -> Program:
    """Return a copy of `program` in which of the quantizers `every` only those in `kept` quantize."""
    copy = program.copy()
    rewriter = Rewriter(copy, "sensitivity")
    graphs = dict(copy.all_graphs())
    named = {(label, name_of(node)): node for label, graph in graphs.items() for node in calls(graph)}
    for each in every:
        if each in kept:
            continue
        nodes = [named[each.graph, name] for name in each.nodes]
        if each.kind == "weight":
            for reader in each.readers:
                _restore_bias(copy, named[each.graph, reader], rewriter)
        for node in nodes:
            integers = arguments(node)["input"]
            value = _value_of(integers)
            if value is None:
                value = rewriter.constant_node(graphs[each.graph], _float_name(integers), [integers])
            rewriter.replace(node, value)
            _erase_unused(integers, rewriter)
    return copy


def _quantizer(
    graph: str, kind: Literal["activation", "weight"], name: str, value: fx.Node, nodes: list[fx.Node]
) -> Quantizer:
    readers = list(dict.fromkeys(reader for node in nodes for reader in _readers(node)))
    provenance = provenance_of(value)
    modules = sorted({each.module for each in provenance.origins if each.module}) if provenance is not None else []
    return Quantizer(
        name=name,
        kind=kind,
        graph=graph,
        nodes=tuple(name_of(node) for node in nodes),
        readers=tuple(name_of(node) for node in readers),
        layers=tuple(dict.fromkeys(_keep_name(node) for node in readers)),
        keep=tuple(dict.fromkeys(_keep_name(node) for node in [*readers, *_makers(value)])),
        operators=tuple(dict.fromkeys(operator_name(node.target).split(".")[1] for node in readers)),
        module=", ".join(modules),
    )


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return the operators that compute with `node`, perhaps rearranged first."""
    found: list[fx.Node] = []
    for user in node.users:
        if user.op != "call_function" or operator_name(user.target).startswith("quantized_decomposed."):
            continue
        found += _readers(user) if kind_of(user) == "rearrangement" else [user]
    return found


def _makers(value: fx.Node) -> list[fx.Node]:
    """Return what computes `value` in integers and cannot give floats, in a Program for a target that wants it so."""
    maker = value.all_input_nodes[0] if kind_of(value) == "limit" else value
    wanted = all(_result_is_quantized(node) for node in calls(value.graph) if _gives_integers(node))
    return [maker] if wanted and _gives_integers(maker) else []


def _gives_integers(node: fx.Node) -> bool:
    """Tell whether `node` computes in integers, and is none of the linear layers, which give floats as fast."""
    if kind_of(node) in (None, "linear", "activation", "limit", "rearrangement"):
        return False
    if operator_name(node.target) in CONVOLUTIONS and not _is_dequantize(arguments(node)["weight"]):
        return False
    return all(_is_dequantize(source_of(each)[0]) for each in operands(node))


def _result_is_quantized(node: fx.Node) -> bool:
    return any(_value_of(user) is not None for user in limited(node).users)


def _keep_name(reader: fx.Node) -> str:
    """Return the weight of a layer, which is called so before fused layers are taken apart too, or the operator."""
    weight = arguments(reader).get("weight")
    if isinstance(weight, fx.Node) and _is_dequantize(weight) and arguments(weight)["input"].op == "get_attr":
        return _float_name(arguments(weight)["input"])
    return name_of(reader)


def _is_dequantize(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target).startswith("quantized_decomposed.dequantize_")


def _value_of(integers: fx.Node) -> fx.Node | None:
    """Return the activation that became these integers."""
    if integers.op != "call_function" or not operator_name(integers.target).startswith(
        "quantized_decomposed.quantize_"
    ):
        return None
    value: fx.Node = arguments(integers)["input"]
    return None if value.op == "get_attr" else value


def _erase_unused(node: fx.Node, rewriter: Rewriter) -> None:
    """Erase `node`, and what only it used, where nothing uses it: a range found at run time takes its time."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each.op == "call_function" and not each.users and not each._erased:
            waiting += each.all_input_nodes
            rewriter.erase(each)


def _float_name(integers: fx.Node) -> str:
    return str(integers.target).rpartition(_INTEGERS)[0] or str(integers.target)


def _floats_of(program: Program, integers: fx.Node) -> torch.Tensor | None:
    """Return what a weight was before a pass quantized it."""
    held = program.constants.get(_float_name(integers))
    known = _INTEGERS in str(integers.target) and held is not None and held.is_floating_point()
    return held if known and held is not None and held.shape == integers.meta["val"].shape else None


def _biases(program: Program, layers: Collection[str]) -> set[str]:
    """Return the names of what dequantizes the biases of these layers: they belong to the layers' weights."""
    found = set()
    for _, graph in program.all_graphs():
        for node in calls(graph):
            if name_of(node) in layers and operator_name(node.target) in LAYERS:
                holder, slot = bias_holder(node)
                bias = arguments(holder)[slot]
                if isinstance(bias, fx.Node) and _is_dequantize(bias):
                    found.add(name_of(bias))
    return found


def _restore_bias(program: Program, layer: fx.Node, rewriter: Rewriter) -> None:
    """Give a layer the bias that it had before its weight was quantized."""
    if operator_name(layer.target) not in LAYERS:
        return
    holder, slot = bias_holder(layer)
    bias = arguments(holder)[slot]
    constant = arguments(bias)["input"] if isinstance(bias, fx.Node) and _is_dequantize(bias) else bias
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return
    name = str(constant.target)
    provenance = provenance_of(constant)
    if constant is bias and (provenance is None or provenance.made_by.partition(":")[0] not in _PASSES):
        return
    old = _float_name(constant) if constant is not bias else name.rpartition("_")[0]
    held: Any = program.constants.get(old)
    if held is None or held.shape != constant.meta["val"].shape or not held.is_floating_point():
        # It had none: the pass made one.
        new = rewriter.set_constant(holder.graph, f"{name}.none", torch.zeros(tuple(constant.meta["val"].shape)))
    else:
        new = rewriter.constant_node(holder.graph, old, [constant])
    set_argument(rewriter, holder, slot, new)
    _erase_unused(bias, rewriter)
