"""Decompose the operators that torch's ONNX translations lack, each where it stands.

`torch.onnx.export` traces the whole model again to do this; here only the nodes concerned are traced, so that all
others keep their names and provenance, and the time goes with what must change.

Cases not handled, for which the caller leaves the work to torch: a decomposition that creates a tensor constant, and
one that cannot be traced by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx._internal.exporter import _decomp, _registration

from burnish.backends.onnx.quiet import quiet
from burnish.backends.onnx.translations import TRANSLATED

__all__ = ["Translations", "decompose", "missing", "translations"]

# Checks on shapes and values: the exporter drops them.
_DROPPED = frozenset(
    {
        "aten::sym_constrain_range_for_size",
        "aten::_assert_async",
        "aten::_assert_scalar",
        "aten::_assert_tensor_metadata",
    }
)


class Translations:
    """What torch can translate to ONNX in one opset.

    Attributes:
        table: decompositions for operators without a translation.
    """

    def __init__(self, opset: int) -> None:
        with quiet():
            self._registry = _registration.ONNXRegistry.from_torchlib(opset)
            known = set(_decomp.get_onnx_implemented_overloads(self._registry))
            self.table: dict[Any, Callable[..., Any]] = _decomp.create_onnx_friendly_decomposition_table(known)

    def has(self, target: Any) -> bool:
        """Tell whether `target` is translated (or dropped) as it is."""
        if target is operator.getitem or target in TRANSLATED or self._registry.get_decomps(target):
            return True
        return isinstance(target, OpOverload) and target._schema.name in _DROPPED

    def decomposes(self, target: Any) -> bool:
        """Tell whether `target` has a decomposition."""
        if target in self.table:
            return True
        return isinstance(target, OpOverload) and bool(target._can_decompose())


@functools.cache
def translations(opset: int) -> Translations:
    """Return what torch translates in `opset` (at least 18); takes 0.3 s the first time."""
    return Translations(opset)


def decompose(exported: ExportedProgram, opset: int, fake_mode: FakeTensorMode) -> bool:
    """Decompose what must be, in place, in the graph and its branches; False when torch had better do all of it."""
    known = translations(opset)
    for owner in [each for each in exported.graph_module.modules() if isinstance(each, fx.GraphModule)]:
        graph = owner.graph
        for node in list(graph.nodes):
            if node.op != "call_function" or isinstance(node.target, HigherOrderOperator) or known.has(node.target):
                continue
            if not known.decomposes(node.target) or not _replace(node, known, fake_mode):
                return False
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        owner.recompile()
    # The signature goes by name, and an output may have a new producer.
    for spec, node in zip(exported.graph_signature.output_specs, exported.graph.output_node().args[0], strict=True):
        spec.arg = dataclasses.replace(spec.arg, name=node.name)
    return True


def missing(node: fx.Node, known: Translations, fake_mode: FakeTensorMode) -> list[str]:
    """Return the operators without a translation that `node` comes down to; [] also where only torch can tell."""
    if known.has(node.target):
        return []
    if not known.decomposes(node.target):
        return [str(node.target)]
    body = _expansion(node, known, fake_mode)
    targets = [] if body is None else [each.target for each in body.nodes if each.op == "call_function"]
    return [str(target) for target in targets if not known.has(target)]


def _replace(node: fx.Node, known: Translations, fake_mode: FakeTensorMode) -> bool:
    body = _expansion(node, known, fake_mode)
    if body is None or any(
        each.op == "get_attr" or (each.op == "call_function" and not known.has(each.target)) for each in body.nodes
    ):
        return False
    _splice(node, body, node.all_input_nodes)
    return True


def _expansion(node: fx.Node, known: Translations, fake_mode: FakeTensorMode) -> fx.Graph | None:
    inputs = node.all_input_nodes
    values = [each.meta.get("val") for each in inputs]
    if any(value is None for value in values):
        return None
    target: Any = node.target

    def run(*given: Any) -> Any:
        look_up = dict(zip(inputs, given, strict=True)).__getitem__
        return target(*fx.node.map_arg(node.args, look_up), **fx.node.map_arg(node.kwargs, look_up))

    try:
        with fake_mode, enable_python_dispatcher(), torch.no_grad():
            values = _each_its_own(values)
            # A composite operator comes apart in the first trace only, and may write in place there.
            pure = torch.func.functionalize(make_fx(run)(*values), remove="mutations")
            traced = make_fx(pure, decomposition_table=known.table)(*values)
    except Exception:
        # Whatever goes wrong in a lone trace, the whole-model trace may get right, and its errors are known.
        return None
    traced.graph.eliminate_dead_code()
    graph: fx.Graph = traced.graph
    return graph


def _each_its_own(values: list[Any]) -> list[Any]:
    """Copy a tensor that stands for several inputs: a trace tells inputs apart by the identity of their values."""
    seen: set[int] = set()
    own = []
    for value in values:
        repeated = isinstance(value, torch.Tensor) and id(value) in seen
        own.append(value.clone() if repeated else value)
        seen.add(id(value))
    return own


def _splice(node: fx.Node, body: fx.Graph, inputs: list[fx.Node]) -> None:
    done: dict[fx.Node, Any] = dict(zip(body.find_nodes(op="placeholder"), inputs, strict=True))
    graph = node.graph
    with graph.inserting_before(node):
        for each in body.nodes:
            if each.op == "call_function":
                done[each] = made = graph.node_copy(each, done.__getitem__)
                made.meta = {**node.meta, "val": each.meta.get("val")}
    result: Any = fx.node.map_arg(body.output_node().args[0], done.__getitem__)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            index: Any = user.args[1]
            user.replace_all_uses_with(result[index])
            graph.erase_node(user)
    graph.erase_node(node)
