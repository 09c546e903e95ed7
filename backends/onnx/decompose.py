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

from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _decomp, _registration

from burnish.backends.onnx.quiet import quiet
from burnish.backends.onnx.translations import TRANSLATED
from burnish.compiler.expansion import expansion, splice

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
    body = expansion(node, fake_mode, table=known.table)
    targets = [] if body is None else [each.target for each in body.nodes if each.op == "call_function"]
    return [str(target) for target in targets if not known.has(target)]


def _replace(node: fx.Node, known: Translations, fake_mode: FakeTensorMode) -> bool:
    body = expansion(node, fake_mode, table=known.table)
    if body is None or any(
        each.op == "get_attr" or (each.op == "call_function" and not known.has(each.target)) for each in body.nodes
    ):
        return False
    splice(node, body)
    return True
