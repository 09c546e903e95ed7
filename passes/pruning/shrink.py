"""Shrink: a Program without the positions of some classes: smaller constants, and sizes in arguments to match."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from burnish.compiler.conditional import Conditional, conditional
from burnish.compiler.graphs import calls
from burnish.compiler.operators import arguments, find_operator, operator_name, schema_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.pruning.flow import sizes_of
from burnish.passes.pruning.layouts import Layout
from burnish.passes.pruning.propagate import Dependencies
from burnish.passes.pruning.units import Flags

__all__ = ["shrink", "with_something_left"]


def shrink(rewriter: Rewriter, dependencies: Dependencies, kept: Flags) -> None:
    """Remove classes.

    Args:
        rewriter: makes the changes.
        dependencies: of its Program.
        kept: for every class whether it stays, [classes]; frozen ones do.
    """
    _Shrinking(rewriter, dependencies, kept[dependencies.classes.of]).run()


def with_something_left(dependencies: Dependencies, kept: Flags) -> Flags:
    """Return `kept` with as many classes more as it takes for no dimension of any value to become empty."""
    kept, of = kept.copy(), dependencies.classes.of
    for value in dependencies.layouts.values():
        for layout in value if isinstance(value, list) else [value]:
            for block in layout.blocks:
                if block.units.size and not kept[of[block.units]].any():
                    kept[of[block.units.flat[0]]] = True
    return kept


class _Shrinking:
    def __init__(self, rewriter: Rewriter, dependencies: Dependencies, stays: Flags) -> None:
        self.rewriter, self.layouts, self.stays = rewriter, dependencies.layouts, stays
        self.shapes = {node: sizes_of(node) for _, graph in rewriter.program.all_graphs() for node in graph.nodes}
        self.changed_branches: dict[str, bool] = {}
        self.constants = {
            name: {dim: stays[units] for dim, units in dims.items() if not stays[units].all()}
            for name, dims in dependencies.constants.items()
        }

    def run(self) -> None:
        """Change constants first, then every operator that reads what has changed, in order."""
        program = self.rewriter.program
        smaller: dict[str, torch.Tensor] = {}
        for name, dims in self.constants.items():
            for dim, stays in dims.items():
                value = smaller.get(name, program.constants.get(name))
                assert value is not None
                smaller[name] = value.index_select(dim, torch.from_numpy(np.flatnonzero(stays)))
        changed = self.rewriter.replace_constants(smaller)
        for graph in program.graphs.values():
            self._change(graph, changed)

    def _change(self, graph: fx.Graph, changed: set[fx.Node]) -> bool:
        """Change what reads something of `changed`, which grows; tell whether the results may have."""
        for node in calls(graph):
            choice = conditional(node)
            if self._changed_inside(choice, changed) if choice else not changed.isdisjoint(node.all_input_nodes):
                given = _LITERALS[node.target](self, node, arguments(node)) if node.target in _LITERALS else {}
                _set_arguments(self.rewriter, node, given)
                changed.add(node)
        return not changed.isdisjoint(graph.nodes)

    def _changed_inside(self, choice: Conditional, changed: set[fx.Node]) -> bool:
        program = self.rewriter.program
        for inside, operand in choice.inputs(program):
            if operand in changed:
                self.rewriter.set_input_type(inside, operand.meta["val"])
                changed.add(inside)
        for name in choice.branches:
            # Another `cond` may have been here: sizes change once.
            if name not in self.changed_branches:
                self.changed_branches[name] = self._change(program.branches[name], changed)
        return any(self.changed_branches[name] for name in choice.branches)

    def along(self, layout: Layout, dim: int) -> Flags | None:
        """Return which positions along a dimension stay, [size]; None where all do."""
        block = layout.block(dim)
        if block is None:
            return None
        axis = block.dims.index(dim)
        rows = np.moveaxis(self.stays[block.units], axis, 0).reshape(block.units.shape[axis], -1)
        found: Flags = np.any(rows, axis=1)
        return found

    def sizes(self, node: fx.Node) -> list[Any]:
        """Return the shape of a value as it will be."""
        layout = self.layouts[node]
        assert isinstance(layout, Layout)
        found = [(size, self.along(layout, dim)) for dim, size in enumerate(sizes_of(node))]
        return [size if stays is None else int(stays.sum()) for size, stays in found]


_Literals = Callable[[_Shrinking, fx.Node, dict[str, Any]], dict[str, Any]]


def _view(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    name = "size" if "size" in given else "shape"
    new = shrinking.sizes(node)
    return {name: [_new_size(old, size) for old, size in zip(given[name], new, strict=True)]}


def _unflatten(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    sizes, rank = given["sizes"], len(sizes_of(given["self"]))
    first = given["dim"] % rank
    new = shrinking.sizes(node)[first : first + len(sizes)]
    return {"sizes": [_new_size(old, size) for old, size in zip(sizes, new, strict=True)]}


def _slice(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    source = given["self"]
    rank = len(sizes_of(source))
    layout = shrinking.layouts[source]
    assert isinstance(layout, Layout)
    stays = shrinking.along(layout, given["dim"] % rank)
    if stays is None:
        return {}
    start, end, step = slice(given["start"], given["end"], given["step"]).indices(len(stays))
    if step > 1:
        return {"start": start, "end": int(stays.sum())}
    return {"start": int(stays[:start].sum()), "end": int(stays[:end].sum())}


def _split(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    layouts, parts = shrinking.layouts[node], node.meta["val"]
    if not isinstance(layouts, list):
        return {}
    dim = given["dim"] % parts[0].dim()
    found = [shrinking.along(layout, dim) for layout in layouts]
    return {
        "split_sizes": [
            size if stays is None else int(stays.sum()) for size, stays in zip(given["split_sizes"], found, strict=True)
        ]
    }


def _groups(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    before = shrinking.shapes[given["weight"]]
    transposed = "transpose" in operator_name(node.target) or given.get("transposed", False)
    # Groups that can go have one input; the weight of a transposed convolution is [I, O / groups].
    one_by_one = before[0] == given["groups"] if transposed else before[1] == 1
    if given["groups"] == 1 or not one_by_one:
        return {}
    source = given["input"]
    return {"groups": int(sizes_of(source)[len(sizes_of(source)) - len(before) + 1])}


def _shuffled(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    """Whole groups go, or as many channels of each."""
    layout = shrinking.layouts[given["self"]]
    assert isinstance(layout, Layout)
    stays = shrinking.along(layout, 1)
    return {} if stays is None else {"groups": int(stays.reshape(given["groups"], -1).any(1).sum())}


def _heads(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    """Every head keeps its size, and every head of keys its queries."""
    projected = "weight" in given
    source = given["weight"] if projected else given["query"] if "query" in given else given["input"]
    dim = 0 if projected else -1
    before, after = shrinking.shapes[source][dim], sizes_of(source)[dim]
    return {name: given[name] * after // before for name in ("heads", "kv_heads") if name in given}


def _group_norm(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    before, after = sizes_of(node)[1], sizes_of(given["input"])[1]
    assert isinstance(before, int) and isinstance(after, int)
    return {"num_groups": given["num_groups"] * after // before}


def _norm_of_features(shrinking: _Shrinking, node: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    source, count = given["input"] if "input" in given else given["tables"][0], len(given["normalized_shape"])
    return {"normalized_shape": list(sizes_of(source)[-count:])}


_LITERALS: dict[Any, _Literals] = {
    find_operator(name): rule
    for rule, names in {
        _view: ("aten.reshape", "aten.view", "aten._unsafe_view", "aten.expand"),
        _unflatten: ("aten.unflatten.int",),
        _slice: ("aten.slice.Tensor",),
        _split: ("aten.split_with_sizes",),
        _groups: (
            "aten.conv1d",
            "aten.conv2d",
            "aten.conv3d",
            "burnish.conv_act",
            "aten.conv_transpose1d",
            "aten.conv_transpose2d.input",
            "aten.conv_transpose3d.input",
        ),
        _heads: ("burnish.multi_head_attention", "burnish.self_attention", "burnish.rotary_embedding"),
        _group_norm: ("aten.group_norm",),
        _shuffled: ("aten.channel_shuffle", "aten.native_channel_shuffle"),
        _norm_of_features: (
            "aten.layer_norm",
            "aten.rms_norm",
            "burnish.skip_layer_norm",
            "burnish.skip_rms_norm",
            "burnish.embedding_layer_norm",
        ),
    }.items()
    for name in names
}


def _new_size(old: Any, new: Any) -> Any:
    return new if isinstance(old, int) and old != -1 else old


def _set_arguments(rewriter: Rewriter, node: fx.Node, changed: dict[str, Any]) -> None:
    """Give `node` other literals, by schema name, and type it again."""
    args, kwargs = list(node.args), dict(node.kwargs)
    target: Any = node.target
    schema = schema_of(target)
    for name, value in changed.items():
        assert schema is not None
        index = schema.names.index(name)
        if index < len(args):
            args[index] = value
        else:
            kwargs[name] = value
    rewriter.set_arguments(node, tuple(args), kwargs)
