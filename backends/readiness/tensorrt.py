"""What TensorRT's parser does not take of a graph: operators, element types, attributes, inputs and outputs.

Shapes and profiles are in `tensorrt_shapes`, pairs of quantize and dequantize in `tensorrt_pairs`.

Not handled: what only the builder finds out, such as a tensor above its limits at one of the profile's sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.nodes import Node
from burnish.backends.readiness.standard import is_known
from burnish.backends.readiness.table import Restriction, Table
from burnish.backends.readiness.tensorrt_pairs import pair_findings
from burnish.backends.readiness.tensorrt_shapes import Range, shape_findings
from burnish.compiler.backend import Finding

__all__ = ["tensorrt_findings"]

_CONTRIB = "com.microsoft"
_FLOAT64 = "float64"
# The first input, not the type that input and result share, says what these compute in.
_BY_FIRST_INPUT = ("DequantizeLinear", "QuantizeLinear")
_BOTH_ENDS = ("Cast", "CastLike")
_DOUBLE_FIX = "convert the model to float32 before its capture: `model.float()`"


def tensorrt_findings(graph: Graph, table: Table, ranges: Mapping[str, Range]) -> Iterator[Finding]:
    """Yield what TensorRT refuses, or takes in another sense than ONNX.

    Args:
        graph: what to look at.
        table: what the release takes.
        ranges: sizes of dynamic dimensions by symbol, the optimization profile.
    """
    if graph.opset and not table.oldest <= graph.opset <= table.opset:
        reason = f"opset {graph.opset}; TensorRT {table.release} reads {table.oldest} to {table.opset}"
        fix = f"lower with `onnx{{dialect=tensorrt,opset={_ours(table)}}}`"
        yield Finding("opset", "model", reason, "", "opset", fix)
    for node in graph.nodes():
        yield from _operator_findings(node, table)
    yield from _value_findings(graph, table)
    yield from pair_findings(graph, table)
    yield from shape_findings(graph, table, ranges)


def _ours(table: Table) -> int:
    """Return the newest opset that both burnish writes and the release reads."""
    return min(table.opset, 23)


def _operator_findings(node: Node, table: Table) -> Iterator[Finding]:
    name = node.proto.op_type
    if not node.is_standard:
        if node.proto.domain == _CONTRIB:
            yield node.finding("operator", "it is ONNX Runtime's own operator", "lower with `onnx{dialect=tensorrt}`")
        else:
            reason = f"the domain {node.proto.domain!r} is not part of the standard, so that TensorRT needs a plugin"
            yield node.finding("operator", reason)
        return
    fix = table.fixes.get(name, "")
    if name in table.operators:
        yield from _type_findings(node, table)
        for restriction in table.restrictions.get(name, ()):
            yield from _restriction_findings(node, restriction)
    elif name in table.later:
        reason = f"TensorRT parses it from {table.later[name]} on, not {table.release}"
        yield node.finding("operator", reason, fix or f"build with TensorRT {table.later[name]} or later")
    elif is_known(node, node.scope.opsets.get("", 0)):
        known = "does not support it" if name in table.refused else "is not known to support it"
        yield node.finding("operator", f"TensorRT {table.release} {known}", fix)


def _type_findings(node: Node, table: Table) -> Iterator[Finding]:
    allowed = table.operators[node.proto.op_type]
    # Types that no tensor of a network can have are named where they enter.
    found = [each for each in _checked_types(node) if each in table.types | table.ends and each not in allowed]
    for each in dict.fromkeys(found):
        # The rules of pairs say more of integers that came from floats.
        if node.proto.op_type == "DequantizeLinear" or each == "int8":
            continue
        reason = f"TensorRT has it for {', '.join(sorted(allowed))}, not for {each}"
        yield node.finding("type", reason, _type_fix(each, allowed))


def _type_fix(found: str, allowed: frozenset[str]) -> str:
    if found.startswith("int") and "float32" in allowed:
        return "cast to float32 before, in the model"
    if found == "bool" and "int32" in allowed:
        return "cast to int32 before, in the model"
    return "cast to float32 or int32 right behind the network's input" if found == "uint8" else ""


def _checked_types(node: Node) -> list[str]:
    """Return the element types that the table speaks of."""
    results = [node.scope.dtype(value) for value in node.proto.output[:1]]
    if node.proto.op_type in _BOTH_ENDS:
        return [node.dtype(0), *results]
    if node.proto.op_type in _BY_FIRST_INPUT:
        return [node.dtype(0)]
    if not node.proto.input:
        return results
    schema = onnx.defs.get_schema(node.proto.op_type, node.scope.opsets[""], "")
    kinds = [schema.inputs[min(index, len(schema.inputs) - 1)].type_str for index in range(len(node.proto.input))]
    wanted = schema.outputs[0].type_str if schema.outputs else ""
    wanted = wanted if wanted in kinds else kinds[0]
    return [node.dtype(index) for index, kind in enumerate(kinds) if kind == wanted and node.input(index)]


def _restriction_findings(node: Node, rule: Restriction) -> Iterator[Finding]:
    given = {index for index in range(len(node.proto.input)) if node.input(index)}
    if rule.attribute:
        value = node.attribute(rule.attribute)
        if rule.allowed and value is not None and value not in rule.allowed:
            wanted = " or ".join(map(str, rule.allowed))
            yield node.finding("attribute", f"{rule.attribute} is {value}; TensorRT has {wanted}", rule.fix)
        if rule.every is not None and value is not None and any(each != rule.every for each in value):
            reason = f"{rule.attribute} is {list(value)}; TensorRT has only {rule.every}"
            yield node.finding("attribute", reason, rule.fix)
    if rule.halves:
        yield from _half_findings(node, rule)
    if rule.fixed:
        yield from _size_findings(node, rule)
    for name in rule.absent:
        # 0 is what they are by default.
        if node.attribute(name):
            yield node.finding("attribute", f"TensorRT does not take the attribute {name}", rule.fix)
    for index in rule.constant:
        if index in given:
            yield from _constant_findings(node, index, rule)
    for index in rule.needed:
        if index not in given and node.attribute(_input_name(node, index)) is None:
            yield node.finding("input", f"TensorRT needs the input {_input_name(node, index)}", rule.fix)
    for index in rule.unused_inputs:
        if index in given:
            yield node.finding("input", f"TensorRT does not take the input {_input_name(node, index)}", rule.fix)
    for index in rule.unused_outputs:
        if index < len(node.proto.output) and _is_used(node, index):
            yield node.finding("output", f"TensorRT does not give the result {_output_name(node, index)}", rule.fix)
    if rule.input in given:
        yield from _input_findings(node, rule)


def _half_findings(node: Node, rule: Restriction) -> Iterator[Finding]:
    if rule.halves == "activations" and node.attribute("direction", "forward") != "bidirectional":
        return
    given = [
        each.decode(errors="replace") if isinstance(each, bytes) else str(each)
        for each in node.attribute(rule.halves, ())
    ]
    middle = len(given) // 2
    if given[:middle] != given[middle:]:
        reason = f"{rule.halves} is {', '.join(given)}; TensorRT wants its two halves to be equal"
        yield node.finding("attribute", reason, rule.fix)


def _size_findings(node: Node, rule: Restriction) -> Iterator[Finding]:
    sizes = node.shape(0) or ()
    chosen = sizes if rule.fixed == "all" else sizes[node.attribute("axis", -1) :][:1]
    if not all(isinstance(size, int) for size in chosen):
        which = "sizes of its input" if rule.fixed == "all" else "size of its input along the axis"
        yield node.finding("shape", f"the {which} must be known when the engine is built", rule.fix)


def _constant_findings(node: Node, index: int, rule: Restriction) -> Iterator[Finding]:
    name = _input_name(node, index)
    if not node.scope.is_known(node.input(index)):
        yield node.finding("input", f"{name} must be known when the engine is built, and depends on an input", rule.fix)
    held = node.constant(index)
    if rule.value is not None and held is not None and np.any(held != rule.value):
        yield node.finding("input", f"{name} must be {rule.value}", rule.fix)


def _input_findings(node: Node, rule: Restriction) -> Iterator[Finding]:
    name, shape, dtype = _input_name(node, rule.input), node.shape(rule.input), node.dtype(rule.input)
    if rule.ranks and shape is not None and len(shape) not in rule.ranks:
        wanted = " or ".join(map(str, rule.ranks))
        yield node.finding("shape", f"{name} has {len(shape)} dimensions; TensorRT takes {wanted}", rule.fix)
    if rule.dtypes and dtype and dtype not in rule.dtypes:
        yield node.finding("type", f"{name} is {dtype}; TensorRT takes {' or '.join(rule.dtypes)}", rule.fix)
    held = node.constant(rule.input) if rule.below is not None else None
    if held is not None and rule.below is not None and np.any(held >= rule.below):
        yield node.finding("input", f"{name} is {int(held.max())}; TensorRT takes less than {rule.below}", rule.fix)


def _is_used(node: Node, index: int) -> bool:
    value = node.proto.output[index]
    return bool(value) and (bool(node.scope.readers(value)) or node.scope.is_output(value))


def _input_name(node: Node, index: int) -> str:
    return _port_name(onnx.defs.get_schema(node.proto.op_type, node.scope.opsets[""], "").inputs, index)


def _output_name(node: Node, index: int) -> str:
    return _port_name(onnx.defs.get_schema(node.proto.op_type, node.scope.opsets[""], "").outputs, index)


def _port_name(ports: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    return ports[index].name if index < len(ports) else f"number {index + 1}"


def _value_findings(graph: Graph, table: Table) -> Iterator[Finding]:
    """Name the types that no tensor of a network can have, once each where they enter."""
    main = graph.main
    for kind, values in (("input", [each.name for each in main.proto.input]), ("output", main.proto.output)):
        for value in values:
            name = value if isinstance(value, str) else value.name
            dtype = main.dtype(name)
            if kind == "output" and dtype == _FLOAT64:
                continue  # its producer is named
            yield from _foreign(name, kind, dtype, table.types | table.ends)
    for scope in graph.scopes:
        for held in scope.proto.initializer:
            yield from _foreign(held.name, "constant", scope.dtype(held.name), table.types | {"uint8"})
    for node in graph.nodes():
        read = {node.dtype(index) for index in range(len(node.proto.input))}
        for value in node.proto.output:
            dtype = node.scope.dtype(value)
            if dtype and dtype not in table.types | table.ends and dtype not in read:
                yield node.finding("type", _reason(dtype), _DOUBLE_FIX if dtype == _FLOAT64 else "")


def _foreign(name: str, kind: str, dtype: str, known: frozenset[str]) -> Iterator[Finding]:
    if dtype and dtype not in known:
        yield Finding(name, kind, _reason(dtype), "", "type", _DOUBLE_FIX if dtype == _FLOAT64 else "")


def _reason(dtype: str) -> str:
    if dtype == _FLOAT64:
        return "TensorRT has no float64: it computes in float32, and clamps what does not fit"
    return f"TensorRT has no tensors of {dtype}"
