"""What ONNX itself says of a graph: unknown operators and attributes, types that do not fit, and older readers.

`opset_findings` holds a graph to a reader that knows the opsets up to one: an operator whose form changed since then
cannot be read there, whatever the file says that it imports.

Not handled: constraints that ONNX states in words only, such as sizes that must agree at run time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx

from burnish.backends.onnx.settings import OPSETS
from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.nodes import Node
from burnish.compiler.backend import Finding

__all__ = ["is_known", "opset_findings", "standard_findings"]

_ERROR = re.compile(r"\(op_type:(?P<operator>[^,]*), node name: (?P<name>[^)]*)\):\s*(?P<reason>[^\n]*)")


def standard_findings(graph: Graph) -> Iterator[Finding]:
    """Yield what breaks a rule of ONNX: no runtime takes that."""
    context = onnx.checker.DEFAULT_CONTEXT.__class__()
    context.ir_version = max(graph.model.ir_version, 3)
    context.opset_imports = dict(graph.main.opsets)
    for node in graph.nodes():
        if not node.is_standard:
            continue
        if not is_known(node, graph.opset):
            since = _first(node.proto.op_type)
            reason = f"opset {graph.opset}, which the file imports, has no such operator"
            yield node.finding("operator", reason, f"lower with opset {since} or later" if since else "")
        elif not any(attribute.HasField("g") for attribute in node.proto.attribute):
            # The checker of nodes cannot see what a branch reads from around it.
            try:
                onnx.checker.check_node(node.proto, context)
            except (onnx.checker.ValidationError, ValueError) as error:
                yield node.finding("onnx", str(error).strip().split("\n")[0])
    yield from _type_findings(graph)


def opset_findings(graph: Graph, opset: int) -> Iterator[Finding]:
    """Yield the operators that a reader of opsets up to `opset` does not know in the form that the file uses.

    Args:
        graph: what to look at.
        opset: from 7 on.
    """
    for node in graph.nodes():
        if not node.is_standard:
            reason = f"the domain {node.proto.domain!r} is not part of the standard"
            yield node.finding("operator", reason, "lower with `onnx{dialect=standard}`")
        elif graph.opset > opset and is_known(node, graph.opset):
            form = onnx.defs.get_schema(node.proto.op_type, graph.opset, "").since_version
            if form > opset:
                reason = f"this form of the operator came with opset {form}"
                yield node.finding("operator", reason, _lower(opset))


def _lower(opset: int) -> str:
    if opset in OPSETS:
        return f"lower with `onnx{{dialect=standard,opset={opset}}}`"
    return f"another exporter: burnish writes opsets {OPSETS[0]} to {OPSETS[-1]}"


def is_known(node: Node, opset: int) -> bool:
    """Tell whether ONNX has the operator of `node` in `opset`."""
    try:
        onnx.defs.get_schema(node.proto.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _type_findings(graph: Graph) -> Iterator[Finding]:
    try:
        onnx.shape_inference.infer_shapes(graph.model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        nodes = {node.name: node for node in graph.nodes()}
        unknown = any(not each.is_standard or not is_known(each, graph.opset) for each in nodes.values())
        for found in _ERROR.finditer(str(error)):
            node = nodes.get(found["name"])
            # Behind an operator without a schema nothing has a type.
            if unknown and "instead is null" in found["reason"]:
                continue
            module = node.module if node is not None else ""
            yield Finding(found["name"], found["operator"], found["reason"], module, "onnx")


def _first(operator: str) -> int:
    """Return the first opset that has an operator, 0 where none has it."""
    versions = [each.since_version for each in onnx.defs.get_all_schemas_with_history() if each.name == operator]
    return min(versions, default=0)
