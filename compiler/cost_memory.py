"""Bytes: what each node reads and writes, and how much is alive while it runs.

The storage model is eager PyTorch's with one simplification, that operators produce contiguous tensors:
- a view aliases its base and costs nothing; so do `reshape`, `flatten`, `contiguous` of a contiguous tensor, `to`
  without effect and dropout. After a transpose, an expand or a narrowing they are copies.
- inputs and values are alive until the last use of any alias (an unused view is no use), outputs until the end;
  constants are not counted.
- a lookup (embedding, index_select, gather) reads the rows that it returns, not the whole table.

Not handled: workspace inside a kernel (im2col, attention scores), in-place reuse, channels-last layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.cost_numbers import Number, from_terms, product, shape_of, terms, total
from burnish.compiler.graphs import node_order, output_of, placeholders
from burnish.compiler.operators import arguments, is_mutating

__all__ = ["Storage", "live_bytes", "tensors_of", "value_bytes"]

Root: TypeAlias = "tuple[fx.Node, int]"

_COPIES_IF_STRIDED = frozenset({"aten::reshape", "aten::flatten", "aten::contiguous", "aten::reshape_as"})
_KEEPS_LAYOUT = _COPIES_IF_STRIDED | {
    "aten::view", "aten::view_as", "aten::_unsafe_view", "aten::unsqueeze", "aten::squeeze", "aten::unflatten",
    "aten::detach", "aten::alias", "aten::lift_fresh", "aten::to", "aten::type_as",
}  # fmt: skip
_CASTS = frozenset({"aten::to", "aten::type_as"})
_DROPOUTS = frozenset({"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"})
_LOOKUPS = frozenset({"aten::embedding", "aten::index_select", "aten::gather", "aten::index", "aten::take_along_dim"})


class Storage:
    """Which tensors of a graph share memory.

    Attributes:
        order: the operator nodes in canonical order.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = node_order(graph)
        self._roots: dict[fx.Node, tuple[Root, ...]] = {}
        self._strided: set[fx.Node] = set()
        self._views: set[fx.Node] = set()
        for node in placeholders(graph):
            self._roots[node] = _own_roots(node)
        for node in self.order:
            base = self._base(node)
            if base is None:
                self._roots[node] = _own_roots(node)
                continue
            self._roots[node] = self._aliased(node, base)
            if not is_mutating(node.target):
                self._views.add(node)

    def roots(self, node: fx.Node) -> tuple[Root, ...]:
        """Return the tensors whose memory `node` refers to: (node that made it, position); none for constants."""
        return self._roots.get(node, ())

    def is_view(self, node: fx.Node) -> bool:
        """Tell whether `node` neither reads nor writes memory."""
        return node in self._views

    def traffic(self, node: fx.Node) -> tuple[Number, Number]:
        """Return the bytes that `node` reads and writes."""
        if node in self._views or next(tensors_of(node.meta.get("val")), None) is None:
            return 0, 0
        written = value_bytes(node)
        inputs = node.all_input_nodes
        if _schema_name(node) in _LOOKUPS and inputs:
            return total([written, *(value_bytes(each) for each in inputs[1:])]), written
        if _schema_name(node) == "burnish::embedding_layer_norm":
            tables = arguments(node)["tables"]
            return total(
                [*(value_bytes(each) for each in inputs if each not in tables), len(tables) * written]
            ), written
        if is_mutating(node.target):
            inputs = inputs[1:]
        return total(value_bytes(each) for each in inputs), written

    def _base(self, node: fx.Node) -> fx.Node | None:
        """Return the input that `node` aliases, or None, and note whether `node` is strided."""
        name = _schema_name(node)
        if name in _DROPOUTS:
            given = arguments(node)
            base = None if given["train"] else given["input"]
        elif name == "aten::_unsafe_view":
            base = node.args[0]
        elif name is None:
            base = node.args[0] if getattr(node.target, "__name__", "") == "getitem" else None
        else:
            base = _aliased_argument(node)
        if not isinstance(base, fx.Node):
            return None
        strided = base in self._strided
        if (name in _COPIES_IF_STRIDED and strided) or (name in _CASTS and _dtype(node) != _dtype(base)):
            return None
        keeps = name is None or name in _KEEPS_LAYOUT or name in _DROPOUTS or _is_outermost(node)
        if strided or not keeps:
            self._strided.add(node)
        return base

    def _aliased(self, node: fx.Node, base: fx.Node) -> tuple[Root, ...]:
        roots = self.roots(base)
        value = base.meta.get("val")
        if _schema_name(node) is None and isinstance(value, (list, tuple)) and len(roots) == len(value):
            index = node.args[1]
            return (roots[index],) if isinstance(index, int) else roots
        return roots


def live_bytes(
    graph: fx.Graph, storage: Storage, temporary: Mapping[fx.Node, Number], count_inputs: bool = True
) -> dict[fx.Node, Number]:
    """Return the bytes of activations that are alive while each operator node runs.

    Args:
        temporary: what nodes need while they run beside inputs and outputs (the peak inside a branch).
        count_inputs: whether the graph's inputs count; not in a branch, where they belong to the caller.
    """
    order = storage.order
    last: dict[Root, int] = {}
    for position, node in enumerate(order):
        if storage.is_view(node) and not node.users:
            continue
        # A view holds on to what it refers to alone: one tensor of a tuple, not its neighbours.
        for each in (node,) if storage.is_view(node) else (node, *node.all_input_nodes):
            for root in storage.roots(each):
                last[root] = position
    for each in output_of(graph).all_input_nodes:
        for root in storage.roots(each):
            last[root] = len(order)
    dying: dict[int, list[Root]] = {}
    for root, position in last.items():
        dying.setdefault(position, []).append(root)

    alive: dict[Any, Any] = {}

    def change(root: Root, sign: int) -> None:
        if root[0].op == "placeholder" and not count_inputs:
            return
        for key, coefficient in terms(_root_bytes(root)).items():
            alive[key] = alive.get(key, 0) + sign * coefficient

    for root in last:
        if root[0].op == "placeholder":
            change(root, 1)
    found: dict[fx.Node, Number] = {}
    for position, node in enumerate(order):
        extra = temporary.get(node)
        before = from_terms(alive)
        for root in storage.roots(node):
            if root[0] is node:
                change(root, 1)
        # The peak inside a branch includes the branch's outputs.
        found[node] = from_terms(alive) if extra is None else total([before, extra])
        for root in dying.get(position, ()):
            change(root, -1)
    return found


def value_bytes(node: fx.Node) -> Number:
    """Return the size in bytes of the value of `node`; 0 for numbers."""
    return total(_tensor_bytes(tensor) for tensor in tensors_of(node.meta.get("val")))


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in the value of a node."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_of(each)


def _tensor_bytes(tensor: torch.Tensor) -> Number:
    return product((tensor.dtype.itemsize, *shape_of(tensor)))


def _own_roots(node: fx.Node) -> tuple[Root, ...]:
    value = node.meta.get("val")
    return tuple((node, index) for index in range(len(value) if isinstance(value, (list, tuple)) else 1))


def _root_bytes(root: Root) -> Number:
    node, index = root
    value = node.meta.get("val")
    part = value[index] if isinstance(value, (list, tuple)) else value
    return total(_tensor_bytes(tensor) for tensor in tensors_of(part))


def _schema_name(node: fx.Node) -> str | None:
    return node.target._schema.name if isinstance(node.target, OpOverload) else None


def _aliased_argument(node: fx.Node) -> Any:
    """Return the argument that the schema says the result aliases."""
    schema = node.target._schema  # type: ignore[union-attr]
    if not schema.returns or schema.returns[0].alias_info is None:
        return None
    # A list of views has its alias set on its elements, so sets are not compared: no view has two bases.
    given = arguments(node)
    return next((given[each.name] for each in schema.arguments if each.alias_info is not None), None)


def _dtype(node: fx.Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _is_outermost(node: fx.Node) -> bool:
    """Tell whether `node` narrows along dimension 0: the part of a contiguous tensor is contiguous."""
    name = _schema_name(node)
    if name in ("aten::select", "aten::slice", "aten::narrow", "aten::split", "aten::chunk", "aten::unbind"):
        given = arguments(node)
        return bool(given["dim"] == 0 and given.get("step", 1) == 1)
    return False
