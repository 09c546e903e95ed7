"""The verifier: what must hold of every Program, and of every pass.

Levels, each including those below:
1 structure: order, dominance, names, constants, signature, provenance
2 types: every operator run again on fake tensors gives the recorded type
3 text: the printed text parses to the same text, printing is deterministic, idempotent passes are
4 numbers: both Programs are run on the sample inputs and the pass is held to its contract
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from burnish.compiler import interpreter
from burnish.compiler.errors import VerificationError
from burnish.compiler.expressions import is_unbacked
from burnish.compiler.graphs import calls, name_of, output_of, placeholders
from burnish.compiler.numerics import Exact, Lossy, Numerics, Reassociates, comparable, drift
from burnish.compiler.operators import is_mutating, operator_name
from burnish.compiler.printer import symbol_names
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of
from burnish.compiler.sizes import expression, same_size
from burnish.compiler.structure import flatten
from burnish.compiler.types_text import format_type
from burnish.compiler.typing_rules import infer

__all__ = ["check_contract", "run_samples", "verify"]


def verify(program: Program, level: int = 2) -> None:
    """Check the invariants of `program` up to `level` 3; contracts (level 4) need two Programs: see `check_contract`.

    Raises:
        VerificationError: an invariant is broken; names the node where there is one.
    """
    if level >= 1:
        _check_signature(program)
        for name, graph in program.all_graphs():
            _check_structure(program, name, graph)
    if level >= 2:
        inferred: dict[Any, Any] = {}
        for _, graph in program.all_graphs():
            _check_types(program, graph, inferred)
    if level >= 3:
        _check_text(program)


def run_samples(program: Program) -> dict[str, Any]:
    """Return the outputs of `program` on its sample inputs by name, and the updated buffers as `buffer <name>`.

    Raises:
        VerificationError: the Program has no sample inputs.
    """
    if not program.samples:
        raise VerificationError("the program has no sample inputs to run: capture it with inputs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result, state = interpreter.run(program, program.samples, dense=True)
    outputs = flatten(program.signature.outputs, result, "outputs")
    return outputs | {f"buffer {name}": value for name, value in state.items()}


def check_contract(numerics: Numerics, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Return the drift between two runs over the outputs that both have, and hold it to `numerics`.

    Raises:
        VerificationError: the contract is broken, or there is no output that both have.
    """
    common = [name for name in before if name in after]
    if not common:
        raise VerificationError(f"none of the outputs {', '.join(before)} is left, so nothing can be compared")
    lossy = isinstance(numerics, Lossy)
    drifts = {
        name: drift(comparable(after[name], before[name]) if lossy else after[name], before[name]) for name in common
    }
    worst = max(common, key=drifts.__getitem__)
    found = drifts[worst]
    allowed = 0.0 if isinstance(numerics, Exact) else numerics.rtol if isinstance(numerics, Reassociates) else None
    if allowed is not None and found > allowed:
        raise VerificationError(f"{worst} differs by {found:.3g} relative, and the contract allows {allowed:g}")
    return found


def _check_signature(program: Program) -> None:
    known = set(program.signature.input_names)
    for name, graph in program.graphs.items():
        for node in placeholders(graph):
            if node.target not in known:
                raise VerificationError(
                    f"graph {name}: input {node.target!r} is neither a program input nor made before"
                )
        outputs = output_of(graph).args[0]
        if not isinstance(outputs, Mapping):
            raise VerificationError(f"graph {name}: its outputs must be a dict by name")
        clash = known.intersection(outputs) if len(program.graphs) > 1 else set()
        if clash:
            raise VerificationError(f"graph {name}: output {min(clash)!r} is made twice")
        known.update(outputs)
    missing = set(program.signature.output_names) - known
    if missing:
        raise VerificationError(f"no graph makes the output {min(missing)!r}")


def _check_structure(program: Program, graph_name: str, graph: fx.Graph) -> None:
    try:
        graph.lint()
    except RuntimeError as error:
        raise VerificationError(f"graph {graph_name}: {error}") from error
    names: set[str] = set()
    for node in graph.nodes:
        name = name_of(node)
        if node.op != "output":
            if name in names:
                raise VerificationError(f"two nodes are called {name!r}", node=name)
            names.add(name)
        if provenance_of(node) is None:
            raise VerificationError(f"{name} has no provenance: make nodes through the Rewriter", node=name)
        if node.op == "get_attr":
            if node.target not in program.constants and node.target not in program.branches:
                raise VerificationError(
                    f"{name} refers to {node.target!r}, which is no constant and no branch", node=name
                )
        elif node.op == "call_function":
            _check_call(node, name)
        elif node.op not in ("placeholder", "output"):
            raise VerificationError(f"{name} is a {node.op} node: a Program has operators only", node=name)


def _check_call(node: fx.Node, name: str) -> None:
    target: Any = node.target
    operator_name(target)
    if is_mutating(target):
        destination = node.args[0]
        onto_buffer = isinstance(destination, fx.Node) and destination.op == "get_attr"
        if target is not torch.ops.aten.copy_.default or not onto_buffer or node.users:
            raise VerificationError(
                f"{name}: {operator_name(target)} writes in place: use the functional form", node=name
            )


def _check_types(program: Program, graph: fx.Graph, inferred: dict[Any, Any]) -> None:
    for node in placeholders(graph):
        if "val" not in node.meta:
            raise VerificationError(f"input {name_of(node)} has no type", node=name_of(node))
    for node in graph.find_nodes(op="get_attr"):
        _check_constant(program, node)
    for node in calls(graph):
        if "val" not in node.meta:
            raise VerificationError(f"{name_of(node)} has no type", node=name_of(node))
        # Types are never written in place, so what was checked against the same operand types need not be again.
        key = (node.target, _fingerprint(node.args), _fingerprint(node.kwargs), id(node.meta["val"]))
        if node.meta.get("checked", (None,))[0] == key:
            continue
        # Deep networks repeat themselves: equal operators on equal types are inferred once.
        kind = (node.target, _type_key(node.args), _type_key(node.kwargs))
        found = inferred[kind] = inferred[kind] if kind in inferred else infer(program, node)
        if not _same_type(node.meta["val"], found, program.fake_mode.shape_env):
            raise VerificationError(
                f"{name_of(node)} is recorded as {_describe(program, node.meta['val'])},"
                f" but {operator_name(node.target)} gives {_describe(program, found)}",
                node=name_of(node),
            )
        # The operands' types are kept alive, or another's could take over their ids.
        node.meta["checked"] = (key, [each.meta.get("val") for each in node.all_input_nodes])


def _check_constant(program: Program, node: fx.Node) -> None:
    value, recorded = program.constants.get(str(node.target)), node.meta.get("val")
    if value is not None and not (
        isinstance(recorded, torch.Tensor) and recorded.dtype == value.dtype and recorded.shape == value.shape
    ):
        raise VerificationError(
            f"constant {node.target!r} is {_describe(program, value)}, not {_describe(program, recorded)}"
        )


def _fingerprint(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return id(value.meta.get("val"))
    if isinstance(value, (list, tuple)):
        return tuple([_fingerprint(each) for each in value])
    if isinstance(value, dict):
        return tuple((name, _fingerprint(each)) for name, each in value.items())
    return repr(value) if isinstance(value, slice) else (type(value), value)


def _type_key(value: Any) -> Any:
    """Return what of an argument decides the type of the result; hashable."""
    if isinstance(value, fx.Node):
        # A branch has no type: its name stands for it.
        return _type_key(value.meta["val"]) if "val" in value.meta else value.target
    if isinstance(value, torch.Tensor):
        sizes = tuple([expression(size) for size in (*value.shape, *value.stride())])
        return (torch.Tensor, value.dtype, value.device, sizes)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return (type(value), value.node.expr)
    if isinstance(value, (list, tuple)):
        return tuple([_type_key(each) for each in value])
    if isinstance(value, dict):
        return tuple((name, _type_key(each)) for name, each in value.items())
    return repr(value) if isinstance(value, slice) else (type(value), value)


def _same_type(recorded: Any, found: Any, shape_env: ShapeEnv | None) -> bool:
    if isinstance(recorded, (tuple, list)) or isinstance(found, (tuple, list)):
        return (
            isinstance(recorded, (tuple, list))
            and isinstance(found, (tuple, list))
            and len(recorded) == len(found)
            and all(_same_type(a, b, shape_env) for a, b in zip(recorded, found, strict=True))
        )
    if isinstance(recorded, torch.Tensor) and isinstance(found, torch.Tensor):
        return (
            recorded.dtype == found.dtype
            and recorded.dim() == found.dim()
            and all(_same_size(a, b, shape_env) for a, b in zip(recorded.shape, found.shape, strict=True))
        )
    if isinstance(recorded, (bool, torch.SymBool)) or isinstance(found, (bool, torch.SymBool)):
        return isinstance(recorded, (bool, torch.SymBool)) and isinstance(found, (bool, torch.SymBool))
    if isinstance(recorded, (int, torch.SymInt)) and isinstance(found, (int, torch.SymInt)):
        return _same_size(recorded, found, shape_env)
    return isinstance(recorded, (float, torch.SymFloat)) == isinstance(found, (float, torch.SymFloat))


def _same_size(recorded: Any, found: Any, shape_env: ShapeEnv | None) -> bool:
    a, b = expression(recorded), expression(found)
    if a == b:
        return True
    # A data-dependent size is a fresh symbol each time that it is inferred.
    if any(is_unbacked(symbol) for each in (a, b) for symbol in getattr(each, "free_symbols", ())):
        return True
    return same_size(a, b, shape_env)


def _describe(program: Program, value: Any) -> str:
    return "nothing" if value is None else format_type(value, symbol_names(program))


def _check_text(program: Program) -> None:
    text = program.print()
    if program.copy().print() != text:
        raise VerificationError("printing is not deterministic: a copy prints another text")
    constants = program.used_constants()
    again = Program.parse(text, constants).print()
    if again != text:
        pairs = itertools.zip_longest(text.splitlines(), again.splitlines())
        first = next((a, b) for a, b in pairs if a != b)
        raise VerificationError(f"the text does not round-trip: printed {first[0]!r}, and after parsing {first[1]!r}")
