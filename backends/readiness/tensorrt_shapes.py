"""Shapes on TensorRT: sizes that change need a profile, tensors of sizes have limits, branches must agree.

A dimension that the file leaves open gets its sizes from a `Range`, by its symbol ("B"), or by input and position
("x.0") where it has none. An input whose values become sizes (a shape tensor) gets them by the input's name.

Not handled: sizes that depend on data within a loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx

from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.nodes import Node, Scope
from burnish.backends.readiness.table import Table
from burnish.compiler.backend import Finding
from burnish.compiler.errors import OptionError

__all__ = ["Range", "dynamic_sizes", "shape_findings"]

_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_RANGE = re.compile(r"(?P<name>[^=\s]+)=(?P<least>\d+)(?::(?P<usual>\d+):(?P<most>\d+))?")
# Sizes are integers of 64 bits in TensorRT's API.
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes of a dynamic dimension: an engine takes those from `least` to `most`, and is tuned for `usual`."""

    least: int
    usual: int
    most: int

    @staticmethod
    def parse(texts: Iterable[str]) -> dict[str, Range]:
        """Read `B=1:8:32`, or `B=8` for one size.

        Raises:
            OptionError: a text is no range, its sizes are not in order or too large, or a name comes twice.
        """
        found: dict[str, Range] = {}
        for text in texts:
            match = _RANGE.fullmatch(text.strip())
            if match is None:
                raise OptionError(
                    f"profile {text!r} is no range: write 'B=1:8:32', the least, usual and most, or 'B=8'"
                )
            if match["name"] in found:
                raise OptionError(f"profile {text!r}: {match['name']} has a range already")
            least = int(match["least"])
            found[match["name"]] = Range(least, int(match["usual"] or least), int(match["most"] or least))
            if not least <= found[match["name"]].usual <= found[match["name"]].most:
                raise OptionError(f"profile {text!r}: the sizes must not fall: least, usual, most")
            if found[match["name"]].most > _LARGEST:
                raise OptionError(f"profile {text!r}: the sizes must be {_LARGEST} at the most")
        return found


def dynamic_sizes(graph: Graph) -> dict[str, list[str]]:
    """Return where the dynamic sizes of the inputs stand, by symbol, or by `input.position` without one."""
    found: dict[str, list[str]] = {}
    for name in graph.main.inputs():
        for index, size in enumerate(graph.main.shape(name) or ()):
            if not isinstance(size, int):
                # "2*B" follows from B.
                for symbol in _SYMBOL.findall(size) or [f"{name}.{index}"]:
                    found.setdefault(symbol, []).append(f"dimension {index} of {name}")
    return found


def shape_findings(graph: Graph, table: Table, ranges: Mapping[str, Range]) -> Iterator[Finding]:
    """Yield sizes without a profile, tensors of sizes that TensorRT does not take, and branches that disagree.

    Raises:
        OptionError: `ranges` names no size of the graph.
    """
    sizes, wanted = dynamic_sizes(graph), _shape_inputs(graph, table)
    for name in ranges:
        if name not in sizes and name not in wanted:
            known = ", ".join([*sizes, *wanted]) or "none"
            raise OptionError(f"a profile is of {name!r}, and the graph has no such dynamic size; there are {known}")
    for name, places in sizes.items():
        if name not in ranges:
            where = f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}"
            yield Finding(
                name, "input", f"dynamic ({where}), and has no profile", "", "profile", f"--profile {name}=1:8:32"
            )
    yield from _state_findings(graph)
    for name, node in wanted.items():
        yield from _shape_input_findings(name, node, graph.main, name in ranges)
    for node in graph.nodes():
        yield from _operand_findings(node, table)
        if node.operator == "If":
            yield from _if_findings(node)
        elif node.operator == "Loop":
            yield from _loop_findings(node)


def _state_findings(graph: Graph) -> Iterator[Finding]:
    given = {each.name for each in graph.main.proto.initializer}
    for each in graph.main.proto.input:
        if each.name in given:
            reason = "an input with an initial value: TensorRT keeps that value as a constant, and an update is lost"
            fix = "give the buffer as an input and return its new value"
            yield Finding(each.name, "input", reason, "", "state", fix)


def _shape_inputs(graph: Graph, table: Table) -> dict[str, Node]:
    """Return the network inputs whose values become sizes, each with a node that wants them."""
    inputs = set(graph.main.inputs())
    found: dict[str, Node] = {}
    seen: set[str] = set()
    for node in graph.nodes():
        for index in table.shape_operands.get(node.operator, ()):
            for name in _sources(node.scope, node.input(index), inputs, table, seen):
                found.setdefault(name, node)
    return found


def _sources(scope: Scope, value: str, inputs: set[str], table: Table, seen: set[str]) -> Iterator[str]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if not each or each in seen or scope.is_known(each):
            continue
        seen.add(each)
        if each in inputs:
            yield each
            continue
        node = scope.producer(each)
        if node is not None and node.operator in table.shape_operators:
            waiting += node.proto.input


def _shape_input_findings(name: str, node: Node, main: Scope, covered: bool) -> Iterator[Finding]:
    dtype, shape = main.dtype(name), main.shape(name)
    reader = f"{node.name} ({node.operator}) takes sizes from it"
    if dtype not in ("", "int32", "int64"):
        reason = f"{reader}: a shape tensor that is an input must be int32 or int64, not {dtype}"
        yield Finding(name, "input", reason, "", "shape-tensor", "pass the size as an integer")
    elif shape is not None and len(shape) > 1:
        reason = f"{reader}: a shape tensor has at most 1 dimension, not {len(shape)}"
        yield Finding(name, "input", reason, "", "shape-tensor", "pass the sizes as a vector")
    elif not covered:
        yield Finding(name, "input", f"{reader}, and has no profile", "", "profile", f"--profile {name}=1:8:32")


def _operand_findings(node: Node, table: Table) -> Iterator[Finding]:
    for index in table.shape_operands.get(node.operator, ()):
        shape = node.shape(index)
        if shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > table.largest_shape:
            reason = f"it takes {shape[0]} sizes from one tensor; TensorRT takes {table.largest_shape}"
            yield node.finding("shape-tensor", reason)


def _if_findings(node: Node) -> Iterator[Finding]:
    branches = {each.name: each.g.output for each in node.proto.attribute if each.HasField("g")}
    for index, (first, second) in enumerate(
        zip(branches.get("then_branch", ()), branches.get("else_branch", ()), strict=False)
    ):
        shapes = [end.type.tensor_type for end in (first, second) if end.type.tensor_type.HasField("shape")]
        ranks = [len(each.shape.dim) for each in shapes]
        if len(set(ranks)) > 1:
            reason = f"result {index} has {ranks[0]} dimensions in one branch and {ranks[1]} in the other"
            yield node.finding("shape", reason, "return results of one rank from both branches")
        if first.name == second.name:
            yield node.finding("output", f"both branches call result {index} {first.name!r}: the names must differ")


def _loop_findings(node: Node) -> Iterator[Finding]:
    body = next((attribute.g for attribute in node.proto.attribute if attribute.HasField("g")), None)
    carried = max(len(node.proto.input) - 2, 0)
    if body is None:
        return
    if len(node.proto.output) > carried and not (node.input(0) and node.scope.is_known(node.input(0))):
        reason = "it collects a result in every round, and how many rounds there are is not known when it is built"
        yield node.finding("shape", reason, "loop a fixed number of times")
    for before, after in zip(body.input[2:], body.output[1:], strict=False):
        if _differ(before.type.tensor_type, after.type.tensor_type):
            yield node.finding("shape", f"what it carries as {before.name!r} changes its shape from round to round")


def _differ(before: onnx.TypeProto.Tensor, after: onnx.TypeProto.Tensor) -> bool:
    """Tell whether two shapes are known to differ."""
    if not (before.HasField("shape") and after.HasField("shape")):
        return False
    pairs = list(zip(before.shape.dim, after.shape.dim, strict=False))
    known = [(a.dim_value, b.dim_value) for a, b in pairs if a.HasField("dim_value") and b.HasField("dim_value")]
    return len(before.shape.dim) != len(after.shape.dim) or any(a != b for a, b in known)
