"""Rules, and what applies them: a rule that could fire and did not says why, which is what `burnish explain` prints."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from burnish.compiler.editing import Editor
from burnish.compiler.errors import BurnishError
from burnish.compiler.graphs import name_of
from burnish.compiler.operators import Operator, find_operator, operator_name
from burnish.compiler.program import Program

__all__ = ["Rewriter", "Rule", "Skip", "rule"]


@dataclass(frozen=True, slots=True)
class Skip:
    """A rule that could have fired at `node` and did not, and why."""

    rule: str
    node: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewrite keyed by the operators at its root.

    Attributes:
        name: what provenance and statistics call it.
        roots: the operators at which `apply` is tried.
        apply: matches with early returns, then rewrites through the rewriter, at most once.
    """

    name: str
    roots: tuple[Operator, ...]
    apply: Callable[[fx.Node, Rewriter], None]


def rule(*roots: str) -> Callable[[Callable[[fx.Node, Rewriter], None]], Rule]:
    """Make a Rule of a function; its name is the function's, with dashes for underscores."""

    def wrap(function: Callable[[fx.Node, Rewriter], None]) -> Rule:
        return Rule(function.__name__.strip("_").replace("_", "-"), tuple(find_operator(r) for r in roots), function)

    return wrap


class Rewriter(Editor):
    """Applies rules to a Program, on behalf of one pass; see `Editor` for its arguments and for single changes."""

    def __init__(self, program: Program, pass_name: str, limit: int | None = None) -> None:
        super().__init__(program, pass_name, limit)
        self._skips: dict[tuple[str, fx.Node], str] = {}
        self._trying: str | None = None

    def nodes(self, *operators: str) -> list[fx.Node]:
        """Return the nodes of all graphs that call one of `operators`, in graph order; all operators by default."""
        wanted = {find_operator(name) for name in operators}
        return [
            node
            for _, graph in self.program.all_graphs()
            for node in graph.nodes
            if node.op == "call_function" and (not wanted or node.target in wanted)
        ]

    def skip(self, node: fx.Node, reason: str) -> None:
        """Record that the current rule could have fired at `node` and did not."""
        name = self._rule or self._trying or self.pass_name
        self._skips[name, node] = reason

    @property
    def skips(self) -> list[Skip]:
        """What was skipped at the nodes that are still there, the latest reason of each rule."""
        return [
            Skip(name, name_of(node), operator_name(node.target), reason)
            for (name, node), reason in self._skips.items()
            if node not in self._erased
        ]

    def sweep(self, rules: Iterable[Rule]) -> None:
        """Apply `rules` to every node until none fires, in time linear in nodes and rewrites.

        New nodes, and the users of replaced ones, are visited again. Raises BurnishError when rules undo each other.
        """
        # By identity: an operator is itself alone, and its own hash is a call of Python.
        table: dict[int, list[Rule]] = {}
        for each in rules:
            for root in each.roots:
                table.setdefault(id(root), []).append(each)
        graphs = [graph for _, graph in self.program.all_graphs()]
        queue = deque([node for graph in graphs for node in graph.nodes if id(node.target) in table])
        budget = 100 + 20 * len(queue)
        waiting = set(queue)
        self._fresh.clear()
        while queue:
            node = queue.popleft()
            waiting.discard(node)
            if node in self._erased:
                continue
            for each in table.get(id(node.target), ()):
                before = self.rewrites
                # A rule counts as one rewrite from its first change on, and as none when it only looked.
                self._trying = self._pending = each.name
                try:
                    each.apply(node, self)
                finally:
                    self._trying = self._pending = self._rule = None
                if self.rewrites > before:
                    budget -= 1
                    if budget < 0:
                        raise BurnishError(f"rule {each.name!r} never comes to rest: two rules undo each other")
                while self._fresh:
                    fresh = self._fresh.popleft()
                    if id(fresh.target) in table and fresh not in waiting and fresh not in self._erased:
                        waiting.add(fresh)
                        queue.append(fresh)
                if node in self._erased:
                    break
