"""The oracle of pruning: what is removed must count as if its consumers had zeros for weights there.

Zeros in what produces a channel would not do: a sigmoid makes one half of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from burnish import Program, Rewriter
from burnish.compiler.conditional import conditional
from burnish.compiler.graphs import calls
from burnish.compiler.numerics import worst_drift
from burnish.compiler.operators import arguments, operator_name
from burnish.passes.pruning.groups import groups_of
from burnish.passes.pruning.propagate import Dependencies, propagate
from burnish.passes.pruning.shrink import shrink, with_something_left

# The dimension of a weight that a channel is read through.
_READ = {"aten.linear": 1, "aten.conv1d": 1, "aten.conv2d": 1, "aten.conv3d": 1}
_READ |= {"burnish.linear_act": 1, "burnish.self_attention": 1}
_READ |= {"aten.conv_transpose1d": 0, "aten.conv_transpose2d.input": 0, "aten.conv_transpose3d.input": 0}
_PRODUCTS = {
    "aten.matmul": ("self", "other"), "aten.bmm": ("self", "mat2"), "aten.mm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"), "aten.baddbmm": ("batch1", "batch2"),
}  # fmt: skip


def chosen(program: Program, dependencies: Dependencies, ratio: float, seed: int) -> np.ndarray:
    """Return which classes stay when `ratio` of every group is removed at random, [classes]."""
    generator = np.random.default_rng(seed)
    kept = np.ones(dependencies.classes.count, np.bool_)
    for group in groups_of(program, dependencies):
        count = min(round(len(group.classes) * ratio), len(group.classes) - 1)
        kept[generator.choice(group.classes, count, replace=False)] = False
    return with_something_left(dependencies, kept)


def pruned(program: Program, ratio: float = 0.5, seed: int = 0) -> tuple[Program, float, Dependencies]:
    """Return a smaller Program, how far its results are from the oracle's, and what was found."""
    smaller = program.copy()
    dependencies = propagate(smaller)
    kept = chosen(program, dependencies, ratio, seed)
    oracle = with_zeros(program, dependencies, kept)
    shrink(Rewriter(smaller, "prune"), dependencies, kept)
    args, kwargs = program.sample_arguments()
    actual, expected = (pytree.tree_leaves(each(*args, **kwargs)) for each in (smaller, oracle))
    return smaller, worst_drift(actual, expected), dependencies


def with_zeros(program: Program, dependencies: Dependencies, kept: np.ndarray) -> Program:
    """Return `program` with zeros where consumers read what goes."""
    found = program.copy()
    nodes = [node for _, graph in program.all_graphs() for node in calls(graph)]
    stands_for = {
        inside: operand for node in nodes if (choice := conditional(node)) for inside, operand in choice.inputs(program)
    }
    read = {each for node in nodes for each in _consumed(node, stands_for)}
    for name, dims in dependencies.constants.items():
        for dim, units in dims.items():
            if (name, dim) in read:
                shape = [1] * found.constants[name].dim()
                shape[dim] = -1
                stays = torch.from_numpy(kept[dependencies.classes.of[units]])
                found.constants[name] = found.constants[name] * stays.reshape(shape)
    _mask_products(found, dependencies, kept)
    return found


def _mask_products(program: Program, dependencies: Dependencies, kept: np.ndarray) -> None:
    """Put zeros into one side of products of two activations, which no constant reads."""
    nodes = [
        node for _, graph in program.all_graphs() for node in graph.nodes if node.op in ("get_attr", "call_function")
    ]
    layouts = propagate(program).layouts
    rewriter = Rewriter(program, "oracle")
    for node in nodes:
        sides = _PRODUCTS.get(operator_name(node.target)) if node.op == "call_function" else None
        if sides is None:
            continue
        left, right = (arguments(node)[side] for side in sides)
        block = layouts[left].block(left.meta["val"].dim() - 1) if left in layouts else None
        if block is None or _origin(left, 0, {}) or _origin(right, 0, {}):
            continue
        axis = block.dims.index(left.meta["val"].dim() - 1)
        units = np.moveaxis(block.units, axis, 0).reshape(block.units.shape[axis], -1)
        stays = torch.from_numpy(kept[dependencies.classes.of[units]].any(1)).to(left.meta["val"].dtype)
        mask = rewriter.set_constant(node.graph, "oracle.mask", stays, [left])
        masked = rewriter.insert(node, "aten.mul.Tensor", (left, mask), name="oracle.masked", origins=[left])
        rewriter.redirect(node, left, masked)


def _consumed(node: fx.Node, stands_for: dict[fx.Node, fx.Node]) -> list[tuple[str, int]]:
    """Return the constants, with a dimension, through which an operator reads and sums up channels."""
    name, given = operator_name(node.target), arguments(node)
    if name in _READ or name == "burnish.conv_act":
        weight, dim = given["weight"], _READ.get(name, 0 if given.get("transposed") else 1)
        shape, groups = weight.meta["val"].shape, given.get("groups", 1)
        depthwise = groups > 1 and (shape[0] == groups if dim == 0 else shape[1] == 1)
        return [] if depthwise else _origin(weight, dim, stands_for)
    if name == "aten.einsum":
        left, _, result = given["equation"].replace(" ", "").partition("->")
        terms = zip(given["tensors"], left.split(","), strict=True)
        summed = [(each, dim) for each, term in terms for dim, letter in enumerate(term) if letter not in result]
        return [found for each, dim in summed for found in _origin(each, dim, stands_for)]
    if name in _PRODUCTS:
        operands = [(given[each], dim) for each, dim in zip(_PRODUCTS[name], (-1, -2), strict=True)]
        return [found for each, dim in operands for found in _origin(each, dim % each.meta["val"].dim(), stands_for)]
    return []


def _origin(value: fx.Node, dim: int, stands_for: dict[fx.Node, fx.Node]) -> list[tuple[str, int]]:
    """Return the constant that `value` is, or is a part of, and the dimension of it that `dim` is; [] where none is."""
    while value.op == "call_function" or value in stands_for:
        if value in stands_for:
            value = stands_for[value]
            continue
        given, name = arguments(value), operator_name(value.target)
        if name == "aten.select.int":
            dim += dim >= given["dim"]
        elif name == "aten.permute":
            dim = given["dims"][dim]
        elif name == "aten.index_select" and given["dim"] != dim:
            pass
        elif name == "aten.index.Tensor" and len(given["indices"]) == 1:
            dim -= given["indices"][0].meta["val"].dim() - 1
        else:
            return []
        value = value.args[0]
    return [(str(value.target), dim)] if value.op == "get_attr" else []
