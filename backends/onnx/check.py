"""What the ONNX backend cannot take, found node by node without translating anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from burnish.backends.onnx.decompose import Translations, missing, translations
from burnish.backends.onnx.model import DTYPES
from burnish.compiler.backend import Finding
from burnish.compiler.conditional import COND
from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments, is_mutating, operator_name
from burnish.compiler.program import Program
from burnish.compiler.provenance import module_of

__all__ = ["findings"]


def findings(program: Program, opset: int) -> Iterator[Finding]:
    """Yield what ONNX or the exporter lacks: operators, element types, and loops."""
    known = translations(opset)
    for _, graph in program.all_graphs():
        for node in graph.nodes:
            reason = _reason(node, known, program)
            if reason:
                name = operator_name(node.target) if node.op == "call_function" else node.op
                yield Finding(name_of(node), name, reason, module_of(node))


def _reason(node: fx.Node, known: Translations, program: Program) -> str:
    if node.op == "output":
        return ""
    value = node.meta.get("val")
    for each in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(each, torch.Tensor) and each.is_complex():
            # Complex values in between are pairs of floats; at the border there is no such type.
            if node.op != "call_function" or any(user.op == "output" for user in node.users):
                return f"ONNX has no inputs, outputs or constants of type {each.dtype}"
        elif isinstance(each, torch.Tensor) and each.dtype not in DTYPES.values():
            return f"the element type {each.dtype} has no counterpart"
    return _operator_reason(node, known, program) if node.op == "call_function" else ""


def _operator_reason(node: fx.Node, known: Translations, program: Program) -> str:
    target: Any = node.target
    if isinstance(target, HigherOrderOperator):
        return "" if target is COND else "of the higher-order operators only cond can be expressed"
    if isinstance(target, OpOverload) and is_mutating(target):
        return "" if target is torch.ops.aten.copy_.default else "it writes to its input"
    if "divisor_override" in arguments(node) and arguments(node)["divisor_override"] is not None:
        return "the exporter ignores divisor_override: multiply the result instead"
    if arguments(node).get("reduce") == "mean":
        return "ONNX has no scattered mean: scatter the sum and the count"
    if target is torch.ops.aten.as_strided.default and not node.all_input_nodes[0].meta["val"].is_contiguous():
        return "it reads strides, which ONNX does not have: make its input contiguous"
    unknown = missing(node, known, program.fake_mode)
    if not unknown:
        return ""
    through = "" if unknown == [str(target)] else f" (it comes down to {', '.join(dict.fromkeys(unknown))})"
    return f"it has neither a translation to ONNX nor a decomposition{through}"
