"""The only way to change a Program: insert, replace, erase, set constants.

Going through one place gives counts, provenance, and bisection by single rewrite (`limit`). Passes get an Editor that
also applies rules: see `rewriter`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from burnish.compiler.errors import BurnishError
from burnish.compiler.graphs import NameTable, name_of
from burnish.compiler.operators import Operator, find_operator, operator_name
from burnish.compiler.program import Program
from burnish.compiler.provenance import merged, provenance_of, set_provenance
from burnish.compiler.structure import Structure
from burnish.compiler.typing_rules import infer, on_types

__all__ = ["Editor", "StopRewriting"]

# Part of a rewrite that has begun: nothing to count, nothing to end.
_WITHIN = contextlib.nullcontext()


class StopRewriting(Exception):  # noqa: N818  a signal, not an error
    """The rewrite limit is reached: the pass ends here, with a whole Program."""


class Editor:
    """Edits the graphs of one Program on behalf of one pass.

    Args:
        program: the Program to change in place (the pipeline hands in a copy).
        pass_name: recorded in the provenance of every node made.
        limit: stop, by StopRewriting, before rewrite number `limit`; None for no limit.

    Attributes:
        rewrites: how many there were.
        counts: how many there were of each name.
        changed: whether anything was changed.
    """

    def __init__(self, program: Program, pass_name: str, limit: int | None = None) -> None:
        self.program = program
        self.pass_name = pass_name
        self.limit = limit
        self.rewrites = 0
        self.counts: Counter[str] = Counter()
        self.changed = False
        self._mutable = program.mutable_constants()
        # The rewrite that has begun, and the one that begins with the next change.
        self._rule: str | None = None
        self._pending: str | None = None
        self._names: dict[fx.Graph, NameTable] = {}
        self._constants: dict[fx.Graph, dict[str, fx.Node]] = {}
        # What is new, or reads something new.
        self._fresh: deque[fx.Node] = deque()
        self._erased: set[fx.Node] = set()

    def constant(self, value: Any) -> torch.Tensor | None:
        """Return the tensor that `value` refers to, or None when it is no constant or one that a run updates."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        if str(value.target) in self._mutable:
            return None
        return self.program.constants.get(str(value.target))

    def is_updated(self, node: fx.Node) -> bool:
        """Tell whether `node` stands for a buffer that a run updates."""
        return node.op == "get_attr" and str(node.target) in self._mutable

    @contextlib.contextmanager
    def rewrite(self, name: str) -> Iterator[None]:
        """Group several changes into one rewrite called `name`.

        Raises:
            StopRewriting: the limit is reached; nothing has been changed.
        """
        if self._rule is not None:
            yield
            return
        self._count(name)
        self._rule = name
        try:
            yield
        finally:
            self._rule = None

    def insert(
        self,
        anchor: fx.Node,
        operator: str | Operator,
        args: tuple[Argument, ...] = (),
        kwargs: dict[str, Argument] | None = None,
        *,
        name: str | None = None,
        origins: Iterable[fx.Node] = (),
        like: fx.Node | tuple[fx.Node, ...] | None = None,
    ) -> fx.Node:
        """Insert an operator before `anchor` and return its node, typed.

        Args:
            anchor: the node to insert before.
            operator: an operator or its name.
            args: positional arguments: literals, constants, and nodes that stand before the anchor.
            kwargs: keyword arguments.
            name: wanted display name; made unique. The anchor's name and the operator's by default.
            origins: nodes whose origins it inherits; by default the anchor.
            like: a node of the same type, which saves the inference (verification compares); of several results a
                tuple of nodes.
        """
        target = find_operator(operator) if isinstance(operator, str) else operator
        with self._grouped("insert"):
            graph = anchor.graph
            with graph.inserting_before(anchor):
                node = graph.create_node("call_function", target)
            # Not before: fx walks the arguments that a node is made with once more (for raw symbolic sizes).
            node.args = args
            if kwargs:
                node.kwargs = kwargs
            for each in node.all_input_nodes:
                # Where the node of a constant stands means nothing.
                if each.op == "get_attr" and not each < node:
                    node.prepend(each)
            if not name:
                short = operator_name(target).split(".")
                name = f"{name_of(anchor)}.{short[min(1, len(short) - 1)]}"
            node.meta["name"] = self._table(graph).unique(name)
            set_provenance(node, merged(list(origins) or [anchor], self._maker("insert")))
            if isinstance(like, tuple):
                node.meta["val"] = tuple([each.meta["val"] for each in like])
            else:
                node.meta["val"] = like.meta.get("val") if like is not None else infer(self.program, node)
            self._fresh.append(node)
            self.changed = True
            return node

    def replace(
        self,
        node: fx.Node,
        by: fx.Node | str | Operator,
        args: tuple[Argument, ...] | None = None,
        kwargs: dict[str, Argument] | None = None,
        *,
        origins: Iterable[fx.Node] = (),
        same_type: bool = False,
        like: fx.Node | None = None,
    ) -> fx.Node:
        """Replace `node` by another node, or by an operator on `args` and `kwargs`, and erase it.

        An operator takes over the name of `node`, its users, and the union of the origins of `node` and `origins`.

        Args:
            node: the node to replace.
            by: an existing node, or an operator or its name.
            args: arguments of the operator; those of `node` when None.
            kwargs: keyword arguments of the operator; those of `node` when `args` is None.
            origins: further nodes that this replaces.
            same_type: the result has the type of `node`, which saves the inference (verification compares).
            like: the result has the type of this node, likewise.
        """
        with self._grouped("replace"):
            if isinstance(by, fx.Node):
                new = by
            else:
                if args is None:
                    args, kwargs = node.args, dict(node.kwargs)
                name, node.meta["name"] = name_of(node), ""
                new = self.insert(
                    node, by, args, kwargs, name="_", origins=[node, *origins], like=node if same_type else like
                )
                new.meta["name"] = name
            self._touch_users(node)
            node.replace_all_uses_with(new)
            self.changed = True
            self._erase(node)
            return new

    def erase(self, node: fx.Node) -> None:
        """Erase `node`, which must have no users; its arguments stay (see the pass dce)."""
        with self._grouped("erase"):
            if node.users:
                raise BurnishError(f"{name_of(node)} still has {len(node.users)} users and cannot be erased")
            self._erase(node)
            self.changed = True

    def set_arguments(
        self, node: fx.Node, args: tuple[Argument, ...], kwargs: dict[str, Argument] | None = None
    ) -> None:
        """Give `node` other arguments; its type is inferred again."""
        with self._grouped("set-arguments"):
            node.args, node.kwargs = args, kwargs if kwargs is not None else node.kwargs
            set_provenance(node, merged([node], self._maker("set-arguments")))
            node.meta["val"] = infer(self.program, node)
            self._touch_users(node)
            self.changed = True

    def set_input_type(self, node: fx.Node, value: Any) -> None:
        """Give an input of a branch the type of an operand; the caller types anew what reads it."""
        node.meta["val"] = value
        self.changed = True

    def set_input_dtype(self, node: fx.Node, dtype: torch.dtype) -> None:
        """Give an input of a stage or a branch another dtype, as its sample; the caller types anew what reads it."""
        with on_types(self.program.fake_mode):
            node.meta["val"] = node.meta["val"].to(dtype)
        sample = self.program.samples.get(str(node.target))
        if sample is not None and node.graph in self.program.graphs.values():
            self.program.samples[str(node.target)] = sample.to(dtype)
        self.changed = True

    def redirect(self, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Let `user`, an operator or the outputs, read `new` wherever it reads `old`, which has the same type."""
        with self._grouped("redirect"):
            user.replace_input_with(old, new)
            if user.op == "call_function":
                set_provenance(user, merged([user], self._maker("redirect")))
                self._fresh.append(user)
            self.changed = True

    def set_constant(self, graph: fx.Graph, name: str, value: torch.Tensor, origins: Iterable[fx.Node] = ()) -> fx.Node:
        """Return a node of `graph` for a new constant called `name`, made unique in the Program.

        An existing constant is never changed in place: other nodes, and other copies of the Program, may share it.
        It may take over the name of one of `origins`, the nodes that it stands for, and of no other node.
        """
        origins = list(origins)
        taken, names, unique, ordinal = self.program.constants, self._table(graph), name, 0
        free = {name_of(node) for node in origins}
        while unique in taken or (unique in names and unique not in free):
            ordinal += 1
            unique = f"{name}_{ordinal}"
        if unique not in names:
            names.unique(unique)
        value = value.detach()
        self.program.constants[unique] = value
        self.changed = True
        return self.constant_node(graph, unique, origins)

    def replace_constants(self, values: Mapping[str, torch.Tensor]) -> set[fx.Node]:
        """Give constants, by name, other values of any shape in all graphs; return their nodes.

        The caller types anew what reads them (see `set_arguments`).
        """
        found = set()
        self.program.constants.update({name: value.detach() for name, value in values.items()})
        for _, graph in self.program.all_graphs():
            for node in graph.find_nodes(op="get_attr"):
                if str(node.target) in values:
                    value = values[str(node.target)]
                    node.meta["val"] = self.program.fake_mode.from_tensor(value, static_shapes=True)
                    set_provenance(node, merged([node], self._maker("replace-constants")))
                    found.add(node)
                    self.changed = True
        return found

    def constant_node(self, graph: fx.Graph, name: str, origins: Iterable[fx.Node] = ()) -> fx.Node:
        """Return the node of `graph` that stands for the constant `name`, made when there is none."""
        known = self._constants.get(graph)
        if known is None:
            known = self._constants[graph] = {str(node.target): node for node in graph.find_nodes(op="get_attr")}
        node = known.get(name)
        if node is None or node in self._erased:
            first = next(iter(graph.nodes))
            with graph.inserting_before(first):
                node = known[name] = graph.get_attr(name)
            node.meta["name"] = name
            node.meta["val"] = self.program.fake_mode.from_tensor(self.program.constants[name], static_shapes=True)
            provenance = merged(origins, self._maker("constant"))
            set_provenance(node, provenance)
        return node

    def add_branch(self, graph: fx.Graph, branch: fx.Graph, name: str) -> fx.Node:
        """Add a graph for a `cond` in `graph` to choose, under a name like `name`; return the node that stands for it.

        Its nodes have types and display names; its output is a tuple.
        """
        unique, ordinal = name, 0
        while unique in self.program.branches or unique in self.program.constants:
            ordinal += 1
            unique = f"{name}_{ordinal}"
        self.program.branches[unique] = branch
        for each in branch.nodes:
            if provenance_of(each) is None:
                set_provenance(each, merged([], self._maker("branch")))
        return self.branch_node(graph, unique)

    def branch_node(self, graph: fx.Graph, name: str) -> fx.Node:
        """Return a new node of `graph` that stands for the branch `name`."""
        with graph.inserting_before(next(iter(graph.nodes))):
            node = graph.get_attr(name)
        node.meta["name"] = self._table(graph).unique(name)
        set_provenance(node, merged([], self._maker("branch")))
        self.changed = True
        return node

    def inherit(self, node: fx.Node, origins: Iterable[fx.Node]) -> None:
        """Add the origins of `origins` to those of `node`, which stands for them from now on."""
        known = provenance_of(node)
        set_provenance(node, merged([node, *origins], known.made_by if known is not None else self._maker("inherit")))

    def set_outputs(self, graph: fx.Graph, outputs: dict[str, fx.Node]) -> None:
        """Make `outputs`, by name, the outputs of `graph`; the caller keeps the signature in step."""
        result = graph.output_node()
        with self._grouped("outputs"):
            result.args = (dict(outputs),)
            self.changed = True

    def set_stages(self, graphs: dict[str, fx.Graph]) -> None:
        """Put stages in place of the graphs; each node of theirs has a type, a display name and provenance."""
        with self._grouped("stages"):
            self.program.graphs = graphs
            self.changed = True

    def set_output_structure(self, outputs: Structure) -> None:
        """Make `outputs` what a call of the Program returns; the caller keeps the graphs' outputs in step."""
        with self._grouped("outputs"):
            self.program.signature = dataclasses.replace(self.program.signature, outputs=outputs)
            self.changed = True

    def _grouped(self, name: str) -> contextlib.AbstractContextManager[None]:
        if self._rule is None and self._pending is not None:
            self._count(self._pending)
            self._rule = self._pending
        return _WITHIN if self._rule is not None else self.rewrite(name)

    def _count(self, name: str) -> None:
        if self.limit is not None and self.rewrites >= self.limit:
            raise StopRewriting
        self.rewrites += 1
        self.counts[name] += 1

    def _maker(self, fallback: str) -> str:
        return f"{self.pass_name}:{self._rule or fallback}"

    def _table(self, graph: fx.Graph) -> NameTable:
        if graph not in self._names:
            self._names[graph] = NameTable(graph)
        return self._names[graph]

    def _touch_users(self, node: fx.Node) -> None:
        self._fresh.extend(node.users)

    def _erase(self, node: fx.Node) -> None:
        self._fresh.extend(each for each in node.all_input_nodes if each.op == "call_function")
        node.graph.erase_node(node)
        self._erased.add(node)
