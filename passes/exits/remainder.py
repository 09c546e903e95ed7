"""The remainder of a Program behind an exit: the same operators, for the samples that stay.

What they read from before is replaced: values that hold a row for every sample by the rows of those that stay, sizes by
the sizes of these, and what is made of both, without work (masks that are expanded), is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sympy
import torch
from torch import fx

from burnish.compiler.errors import OptionError, VerificationError
from burnish.compiler.graphs import calls, name_of
from burnish.compiler.operators import operator_name
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.sizes import expression, static_size
from burnish.passes.canonical.types import shape_of

__all__ = ["Remainder"]

_NOT_WITHOUT_ROWS = frozenset({"aten.instance_norm"})
_VIEWS = frozenset({"aten.view", "aten.reshape"})
_FREE = frozenset({"aten.expand", "aten.unsqueeze", "aten.view", "aten.reshape", "aten.unflatten.int", "aten.alias"})


class Remainder:
    """Lets operators work on other samples.

    Args:
        rewriter: makes the changes.
        anchor: what to insert before; what the operators read stands before it.
        batch: the number of all samples.
        fewer: makes of a value with a row for every sample the rows of those that stay.
    """

    def __init__(
        self, rewriter: Rewriter, anchor: fx.Node, batch: sympy.Symbol, fewer: Callable[[fx.Node], fx.Node]
    ) -> None:
        self.rewriter, self.anchor, self.batch, self.fewer = rewriter, anchor, batch, fewer
        self.known: dict[fx.Node, fx.Node] = {}
        self.size: fx.Node | None = None
        self.made: list[fx.Node] = []

    def move(self, behind: Iterable[fx.Node], value: fx.Node) -> None:
        """Let `behind`, in the graph's order, read the samples that stay, `value` being the first thing that they do.

        Raises:
            OptionError: some of it mixes samples.
        """
        inside = set(behind)
        graph = self.anchor.graph
        self.known[value] = self.fewer(value)
        self.first = self.known[value]
        for node in [each for each in calls(graph) if each in inside]:

            def read(each: fx.Node) -> fx.Node:
                return each if each in inside else self._value(each)

            if operator_name(node.target) in _NOT_WITHOUT_ROWS:
                raise OptionError(
                    f"pass 'insert-exits': no exit can stand before {name_of(node)}: PyTorch has no"
                    f" {operator_name(node.target)} of no samples; a group norm, a group for each channel, is the same"
                )
            args, kwargs = fx.node.map_arg(node.args, read), fx.node.map_arg(node.kwargs, read)
            try:
                self.rewriter.set_arguments(node, self._sized(node, args), kwargs)
            except VerificationError as error:
                raise OptionError(
                    f"pass 'insert-exits': no exit can stand before {name_of(value)}: what is behind it cannot run on"
                    f" a number of samples that only the data decide: {error}"
                ) from error

    def _sized(self, node: fx.Node, args: Any) -> Any:
        """Return the arguments of a view with a size in place of -1: without rows that could be any."""
        if operator_name(node.target) not in _VIEWS or -1 not in args[1]:
            return args
        source, place = args[0], args[1].index(-1)
        wanted = node.meta["val"].shape[place]
        size: Any = static_size(wanted)
        if size is None:
            sizes = [expression(each) for each in shape_of(source) or ()]
            if expression(wanted) == self.batch or expression(wanted) not in sizes:
                return args
            size = self.rewriter.insert(
                node, "aten.sym_size.int", (source, sizes.index(expression(wanted))), name=f"{name_of(node)}.size"
            )
            self.made.append(size)
        return (source, [*args[1][:place], size, *args[1][place + 1 :]], *args[2:])

    def _value(self, node: fx.Node) -> fx.Node:
        """Return what stands for a value from before."""
        if node not in self.known:
            self.known[node] = self._replaced(node)
        return self.known[node]

    def _replaced(self, node: fx.Node) -> fx.Node:
        found = node.meta.get("val")
        if node.op == "get_attr" or not self._counts(found):
            return node
        if isinstance(found, torch.SymInt) and expression(found) == self.batch:
            self.size = self.size or self._insert("aten.sym_size.int", (self.first, 0), node)
            return self.size
        name = operator_name(node.target) if node.op == "call_function" else ""
        rows = isinstance(found, torch.Tensor) and self._is_row_for_each(found)
        if rows and name not in _FREE:
            return self.fewer(node)
        if node.op != "call_function":
            raise OptionError(
                f"pass 'insert-exits': input {str(node.target)!r} does not hold a row for every sample in dimension 0:"
                " what is behind an exit reads it"
            )
        args, kwargs = fx.node.map_arg(node.args, self._value), fx.node.map_arg(node.kwargs, self._value)
        target: Any = node.target
        return self._insert(target, args, node, kwargs)

    def _insert(self, target: Any, args: Any, origin: fx.Node, kwargs: Any = None) -> fx.Node:
        made = self.rewriter.insert(
            self.anchor, target, args, kwargs, name=f"{name_of(origin)}.stay", origins=[origin]
        )  # fmt: skip
        self.made.append(made)
        return made

    def _counts(self, value: Any) -> bool:
        """Tell whether the number of samples is in the type of a value."""
        if isinstance(value, torch.Tensor):
            return any(self._counts(size) for size in value.shape)
        if isinstance(value, (list, tuple)):
            return any(self._counts(each) for each in value)
        return isinstance(value, torch.SymInt) and self.batch in expression(value).free_symbols

    def _is_row_for_each(self, value: torch.Tensor) -> bool:
        return (
            value.dim() > 0
            and expression(value.shape[0]) == self.batch
            and not any(self._counts(size) for size in value.shape[1:])
        )
