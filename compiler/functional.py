"""Make an ExportedProgram functional: no operator writes in place, and contexts (no_grad, autocast) are inlined.

Cases not handled: none known; what torch cannot make functional is refused with its own reason.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from burnish.compiler.errors import CaptureError
from burnish.compiler.graphs import calls
from burnish.compiler.in_place import functional_twins
from burnish.compiler.operators import argument, is_mutating

__all__ = ["IDENTITIES", "functional"]

_aten = torch.ops.aten
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_LIFT = _aten.lift_fresh_copy.default
_VMAP = "torch._functorch.predispatch"
# What only autograd and the tracer care about: in a functional graph they return their argument.
IDENTITIES = frozenset(
    {_aten.detach.default, _aten.detach_.default, _aten.lift_fresh_copy.default, _aten.alias.default}
)


def functional(exported: ExportedProgram) -> tuple[ExportedProgram, dict[fx.Node, OpOverload]]:
    """Return `exported`, or where it has work to do an equal one without mutation; the argument stays as it is.

    The second result gives the functional operator to put in the place of each in-place one that is left.

    Raises:
        CaptureError: torch cannot make the graph functional.
    """
    twins = functional_twins(exported) or {}
    if not _needs_work(exported, twins):
        return exported, twins
    try:
        made: ExportedProgram = _prepared(exported).run_decompositions({})
    except Exception as error:
        raise CaptureError(f"the model writes in place in a way that cannot be made functional: {error}") from error
    return made, {}


def _needs_work(exported: ExportedProgram, twins: Mapping[fx.Node, OpOverload]) -> bool:
    for module in exported.graph_module.modules():
        for node in calls(module.graph) if isinstance(module, fx.GraphModule) else ():
            target: Any = node.target
            if is_mutating(target) and target not in IDENTITIES and node not in twins:
                return True
            # What vmap leaves is functions of Python, which decomposing runs.
            if getattr(target, "__name__", "") in _WRAPPERS or getattr(target, "__module__", "") == _VMAP:
                return True
            if target is _aten.batch_norm.default and argument(node, "training"):
                return True
    return any(spec.kind is not OutputKind.USER_OUTPUT for spec in exported.graph_signature.output_specs)


def _prepared(exported: ExportedProgram) -> ExportedProgram:
    """Return an equal program without the operators that torch gets wrong on its way.

    The copies that `torch.tensor(...)` in forward leaves: torch loses such a constant. Dropout in evaluation mode and
    `detach_`, which return their argument: torch makes a copy of it, which later writes do not reach.
    """
    if not any(_is_alias(node) or node.target is _LIFT for node in calls(exported.graph)):
        return exported
    module = copy.copy(exported.graph_module)
    module.graph = copy.deepcopy(exported.graph)
    for node in list(calls(module.graph)):
        if _is_alias(node):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            module.graph.erase_node(node)
        elif node.target is _LIFT:
            node.target = _aten.clone.default
    module.recompile()
    # The signature goes by name, and an output may have a new producer.
    signature = copy.deepcopy(exported.graph_signature)
    results: Any = module.graph.output_node().args[0]
    for spec, node in zip(signature.output_specs, results, strict=True):
        if isinstance(node, fx.Node):
            spec.arg = dataclasses.replace(spec.arg, name=node.name)
    updated: ExportedProgram = exported._update(module, signature)
    return updated


def _is_alias(node: fx.Node) -> bool:
    if node.target in (_aten.dropout.default, _aten.feature_dropout.default):
        return argument(node, "train") is False
    return node.target is _aten.detach_.default
