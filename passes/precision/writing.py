"""Write a placement into a Program: casts, constants in half precision, and the types of what changes.

A value gets at most one cast, before its first reader of the other type. A cast that the Program has already is used:
what it widens is read before it. Constants that a reader wants in half precision are stored so, under their names;
where another reader wants float32 it gets a cast of that, so that a weight is stored once. Tensors that two names share
they share afterwards.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from burnish.compiler.conditional import conditional
from burnish.compiler.graphs import name_of, output_of, placeholders
from burnish.compiler.operators import arguments
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.types_text import dtype_name
from burnish.passes.precision.kinds import is_cast, kind_of
from burnish.passes.precision.units import Units, operand_key, returned

__all__ = ["Writer"]


class Writer:
    """Writes a placement, once.

    Args:
        units: of the Program.
        placement: for every unit whether it is in half precision.
        rewriter: of the Program.

    Attributes:
        casts: how many casts were inserted.
    """

    def __init__(self, units: Units, placement: list[bool], rewriter: Rewriter) -> None:
        self.units = units
        self.placement = placement
        self.rewriter = rewriter
        self.program = units.program
        self.dtype = units.dtype
        self.casts = 0
        self._forms: dict[tuple[fx.Node, bool], fx.Node] = {}
        self._low_constants: set[str] = set()
        self._written: set[str] = set()

    def write(self) -> None:
        """Write all graphs."""
        with self.rewriter.rewrite("precision"):
            self._store_constants()
            for _, graph in self.program.all_graphs():
                for node in placeholders(graph):
                    if node in self.units.values and self._low(self.units.key(node)):
                        self.rewriter.set_input_dtype(node, self.dtype)
            for graph in self.program.graphs.values():
                self._write_graph(graph)

    def _low(self, key: Hashable) -> bool:
        return self.units.is_low(self.placement, key)

    def _store_constants(self) -> None:
        """Store constants that are read in half precision in it."""
        nodes: dict[str, list[fx.Node]] = {}
        for _, graph in self.program.all_graphs():
            for node in graph.find_nodes(op="get_attr"):
                nodes.setdefault(str(node.target), []).append(node)
        stored: dict[Any, torch.Tensor] = {}
        found = {}
        for name, readers in self.units.constant_readers():
            low = [self._low(each) for each in readers]
            # A mask is cut off for attention alone.
            is_cut = any(node in self.units.troubles for node in nodes[name])
            if not any(low) or (is_cut and not all(low)):
                continue
            value = self.program.constants[name]
            key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
            if key not in stored:
                stored[key] = self._rounded(value)
            found[name] = stored[key]
            self._low_constants.add(name)
        self.rewriter.replace_constants(found)

    def _rounded(self, value: torch.Tensor) -> torch.Tensor:
        """Return `value` in half precision; what was finite is finite."""
        info = torch.finfo(self.dtype)
        return torch.where(value.isfinite(), value.clamp(info.min, info.max), value).to(self.dtype)

    def _write_graph(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "call_function":
                self._write_node(node)
        self._write_outputs(graph)
        for node in reversed(list(graph.nodes)):
            # A cast that nothing reads any more.
            if is_cast(node) and not node.users and node.all_input_nodes[0].meta["val"].dtype is self.dtype:
                self.rewriter.erase(node)

    def _write_node(self, node: fx.Node) -> None:
        if conditional(node) is not None:
            self._write_conditional(node)
            return
        if node not in self.units.reads:
            if node in self.units.values and self._low(self.units.key(node)):
                # One of several results.
                self.rewriter.set_arguments(node, node.args)
            return
        if kind_of(node) == "like":
            self._write_like(node)
            return
        low = self._low(node)
        if is_cast(node) and low and self._is_border(node):
            return
        forms = {each: self._form(each, low, node) for each in self.units.reads[node]}
        if not low:
            for old, new in forms.items():
                if new is not old:
                    self.rewriter.redirect(node, old, new)
            return
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda each: forms.get(each, each))
        if is_cast(node) and args[1] is torch.float32:
            args = (args[0], self.dtype, *args[2:])
        self.rewriter.set_arguments(node, args, kwargs)

    def _is_border(self, node: fx.Node) -> bool:
        """Deal with a cast between the two types that was there before."""
        if node in self.units.values:
            self._forms[node, True] = node.all_input_nodes[0]
            return True
        source = node.all_input_nodes[0]
        if node.meta["val"].dtype is self.dtype and source in self.units.values:
            self.rewriter.replace(node, self._form(source, True, node))
            return True
        return False

    def _write_like(self, node: fx.Node) -> None:
        """Keep the type of what has only the sizes of something that changes."""
        changed = arguments(node)["self"].meta["val"].dtype is self.dtype
        if changed and node in self.units.values and arguments(node)["dtype"] is None:
            self.rewriter.set_arguments(node, node.args, {**node.kwargs, "dtype": torch.float32})

    def _write_conditional(self, node: fx.Node) -> None:
        choice = conditional(node)
        assert choice is not None
        operands = [
            self._form(each, self._low(operand_key(choice, index)), node) if each in self.units.values else each
            for index, each in enumerate(choice.operands)
        ]
        for name in choice.branches:
            if name not in self._written:
                self._written.add(name)
                self._write_graph(self.program.branches[name])
        self.rewriter.set_arguments(node, (*node.args[:3], tuple(operands)), {})

    def _write_outputs(self, graph: fx.Graph) -> None:
        end = output_of(graph)
        label = next((name for name, each in self.program.branches.items() if each is graph), None)
        found = {}
        for name, value in returned(graph):
            key: Hashable = ("border", name) if label is None else (label, name)
            found[name] = self._form(value, self._low(key), end) if value in self.units.values else value
            if label is not None and found[name] is not value:
                self.rewriter.redirect(end, value, found[name])
        if label is None:
            self.rewriter.set_outputs(graph, found)

    def _form(self, value: fx.Node, low: bool, anchor: fx.Node) -> fx.Node:
        """Return `value` in half precision or in float32, perhaps by a cast before `anchor`."""
        is_low = value.meta["val"].dtype is self.dtype
        if is_low == low:
            return value
        if (value, low) not in self._forms:
            dtype = self.dtype if low else torch.float32
            source, origins = value, [value] if value.op == "call_function" else [anchor]
            if low and value in self.units.troubles:
                info, name = torch.finfo(self.dtype), f"{name_of(value)}.clamp"
                arguments_ = (value, info.min, info.max)
                source = self.rewriter.insert(anchor, "aten.clamp", arguments_, name=name, origins=origins, like=value)
            name = f"{name_of(value)}.{dtype_name(dtype)}"
            new = self.rewriter.insert(anchor, "aten.to.dtype", (source, dtype), name=name, origins=origins)
            self._forms[value, low] = new
            self.casts += 1
        return self._forms[value, low]
