"""fold-constants: compute once, now, what depends on no input.

An operator all of whose inputs are constants (or that has none: `arange`, `full`) is run with PyTorch's own kernels and
replaced by a constant, which takes its name. Of a whole subgraph of such operators only the results that others need
are stored, and what only led to them is erased. Equal results are stored once, and as a constant that there is already.
Arithmetic of Python numbers becomes a literal.

Growth is bounded: a result is stored when it is at most `max_growth` bytes larger than the constants that it makes
superfluous. What is larger stays as it is, with a reason, and so do random operators, operators that read a buffer
which a run updates, and broadcasts (`expand`), which cost nothing. `dequantize` of a constant stays: quantized weights
are so on purpose.

Not handled: results that are outputs of a graph (they would be handed out to be written to), operators with branches
(`cond`), tensor lists that are used as such, and operators whose result's size depends on values (`nonzero`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import name_of, output_of
from burnish.compiler.numerics import Exact, Numerics
from burnish.compiler.operators import find_operator
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.constant_regions import FixedNodes, byte_size

__all__ = ["FoldConstants"]

_SIZES = frozenset(find_operator(f"aten.{name}") for name in ("sym_size.int", "sym_numel", "sym_stride.int"))


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Replace what depends on no input by constants.

    Attributes:
        max_growth: how many bytes a result may be larger than the constants that it makes superfluous.
    """

    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Exact()
    idempotent: ClassVar[bool] = True
    max_growth: int = 1 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_growth < 0:
            raise OptionError(
                f"pass 'fold-constants': option 'max_growth' must not be negative, but is {self.max_growth}"
            )

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module."""
        pool = _Pool(program)
        for graph in program.graphs.values():
            _fold_numbers(graph, rewriter)
            fixed = FixedNodes(graph, program.constants, program.mutable_constants())
            for node, reason in fixed.refused.items():
                rewriter.skip(node, reason)
            stored = self._choose(graph, fixed, program, rewriter)
            try:
                _store(graph, fixed, stored, pool, program, rewriter)
            finally:
                # At the end, and at once: a union after each would be quadratic in the number of equal results.
                for constant, others in pool.origins.items():
                    rewriter.inherit(constant, others)
                pool.origins.clear()

    def _choose(self, graph: fx.Graph, fixed: FixedNodes, program: Program, rewriter: Rewriter) -> dict[fx.Node, None]:
        """Return the nodes whose results are to be stored."""
        gone = Counter[fx.Node]()
        erased: set[fx.Node] = set()
        stored: dict[fx.Node, None] = {}
        # Users first: what only a stored result needs is never stored itself.
        for node in reversed(fixed.nodes):
            if node in erased or not node.users or not isinstance(node.meta["val"], torch.Tensor):
                continue
            falling = fixed.falling(node, gone)
            freed = sum(program.constants[str(each.target)].nbytes for each in falling if each.op == "get_attr")
            growth = (byte_size(node.meta["val"]) or 0) - freed
            reason = _objection(node)
            if reason is None and growth > self.max_growth:
                reason = f"the constants would grow by {growth} bytes (max_growth is {self.max_growth})"
            if reason is not None:
                rewriter.skip(node, reason)
                continue
            stored[node] = None
            erased.update(falling)
            gone.update(value for each in falling for value in each.all_input_nodes)
        return stored


class _Pool:
    """The constants by content, so that equal ones are stored once."""

    def __init__(self, program: Program) -> None:
        mutable = program.mutable_constants()
        self.program = program
        # By type alone: the content of a constant is looked at only when a result has its type.
        self.unread: dict[Hashable, list[str]] = {}
        self.names: dict[Hashable, str] = {}
        # What constants that there were already stand for now.
        self.origins: dict[fx.Node, list[fx.Node]] = {}
        for name, value in program.used_constants().items():
            if name not in mutable and value.layout is torch.strided:
                self.unread.setdefault(_type_key(value), []).append(name)

    def find(self, value: torch.Tensor) -> str | None:
        """Return the name of a constant that is equal to `value` bit by bit, strides included."""
        for name in self.unread.pop(_type_key(value), ()):
            self.names.setdefault(_content_key(self.program.constants[name]), name)
        return self.names.get(_content_key(value))

    def add(self, value: torch.Tensor, name: str) -> None:
        """Remember a new constant."""
        self.names[_content_key(value)] = name


def _type_key(value: torch.Tensor) -> Hashable:
    return (value.dtype, value.shape, value.stride(), value.device)


def _content_key(value: torch.Tensor) -> Hashable:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return (_type_key(value), hashlib.blake2b(data.numpy().tobytes()).digest())


def _objection(node: fx.Node) -> str | None:
    """Say why the result of `node` should not be stored, whatever its size."""
    value = node.meta["val"]
    if any(user.op == "output" for user in node.users):
        return "it is an output of the graph"
    if any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True)):
        return "a broadcast costs less than its result"
    return None


def _store(
    graph: fx.Graph,
    fixed: FixedNodes,
    stored: dict[fx.Node, None],
    pool: _Pool,
    program: Program,
    rewriter: Rewriter,
) -> None:
    """Compute the results of `stored`, each node on the way once, and replace them by constants."""
    needed = dict(stored)
    for node in reversed(fixed.nodes):
        if node in needed:
            needed.update((each, None) for each in node.all_input_nodes if each.op == "call_function")
    pending = {node: sum(user in needed for user in node.users) for node in needed}
    values: dict[fx.Node, Any] = {}
    failures: dict[fx.Node, str] = {}
    for node in [each for each in fixed.nodes if each in needed]:
        inputs = node.all_input_nodes
        failure = next((failures[each] for each in inputs if each in failures), None)
        if failure is None:
            try:
                values[node] = _compute(node, values, program)
            except Exception as error:  # whatever a kernel raises, the model may never reach it
                failure = f"computing it fails: {(str(error) or type(error).__name__).splitlines()[0]}"
        if failure is not None:
            failures[node] = failure
            if node in stored:
                rewriter.skip(node, failure)
        elif node in stored:
            # Its users read the constant from now on.
            _replace(graph, node, values.pop(node), fixed, pool, rewriter)
        for each in (*inputs, node):
            if each in pending:
                pending[each] -= each is not node
                if not pending[each]:
                    values.pop(each, None)


def _compute(node: fx.Node, values: dict[fx.Node, Any], program: Program) -> Any:
    def look_up(each: fx.Node) -> Any:
        return program.constants[str(each.target)] if each.op == "get_attr" else values[each]

    target: Any = node.target
    with torch.no_grad():
        return target(*fx.node.map_arg(node.args, look_up), **fx.node.map_arg(node.kwargs, look_up))


def _replace(
    graph: fx.Graph, node: fx.Node, value: torch.Tensor, fixed: FixedNodes, pool: _Pool, rewriter: Rewriter
) -> None:
    # A copy of its own: a view would keep, and save, all that it is a view of.
    value = value.resolve_conj().resolve_neg().clone()
    falling = fixed.falling(node, Counter())
    with rewriter.rewrite("fold-constants"):
        known = pool.find(value)
        if known is None:
            constant = rewriter.set_constant(graph, name_of(node), value, falling)
            pool.add(value, str(constant.target))
        else:
            constant = rewriter.constant_node(graph, known, falling[:1])
            pool.origins.setdefault(constant, []).extend(falling)
        rewriter.replace(node, constant)
        for each in falling[1:]:
            if each is not constant:
                rewriter.erase(each)


def _fold_numbers(graph: fx.Graph, rewriter: Rewriter) -> None:
    """Write numbers that are computed from numbers alone into the arguments of their users."""
    numbers: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        known = [each for each in node.all_input_nodes if each in numbers]
        if _is_number(node):
            numbers[node] = node.meta["val"]
        elif known:
            with rewriter.rewrite("fold-numbers"):
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda each: numbers.get(each, each))
                rewriter.set_arguments(node, args, kwargs)
                rewriter.inherit(node, known)
    with rewriter.rewrite("fold-numbers") if numbers else contextlib.nullcontext():
        for node in reversed(numbers):
            rewriter.erase(node)


def _is_number(node: fx.Node) -> bool:
    # By the recorded type, which holds a plain number where a size is fixed.
    if node.op != "call_function" or not isinstance(node.meta.get("val"), (bool, int, float)):
        return False
    of_numbers = node.target in _SIZES or not isinstance(node.target, OpOverload)
    return of_numbers and output_of(node.graph) not in node.users
