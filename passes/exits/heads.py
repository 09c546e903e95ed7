"""Heads of exits: a pool and a linear layer, a copy of the model's own head, or a module of the user's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from burnish.compiler.capture import capture
from burnish.compiler.cuts import Cut
from burnish.compiler.errors import CaptureError, OptionError
from burnish.compiler.graphs import calls, name_of, output_of, placeholders
from burnish.compiler.operators import operator_name
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.sizes import expression, static_size
from burnish.passes.canonical.types import same_type, shape_of

__all__ = ["copied", "linear", "of_module"]

_CHANNELS_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "pool1d", "pool2d", "pool3d", "upsample")
_CHANNELS_LAST = ("linear", "layer_norm", "rms_norm", "matmul", "addmm", "embedding", "attention")
_TOKENS = 3
_HEAD = 0.05


def linear(rewriter: Rewriter, anchor: fx.Node, value: fx.Node, classes: int, name: str, seed: int) -> fx.Node:
    """Insert a mean over positions and a linear layer, initialized as `nn.Linear` is; return its logits.

    Args:
        rewriter: inserts.
        anchor: what to insert before.
        value: features, [samples, channels, ...] or [samples, ..., channels].
        classes: how many logits.
        name: prefix of names.
        seed: of the weights.

    Raises:
        OptionError: the number of channels is dynamic.
    """
    shape = shape_of(value) or ()
    dim = _channels(value)
    size = static_size(shape[dim])
    if size is None:
        raise OptionError(f"pass 'insert-exits': {name_of(value)} has no fixed number of channels: give heads=")
    pooled = [each for each in range(1, len(shape)) if each != dim]
    if pooled:
        value = rewriter.insert(anchor, "aten.mean.dim", (value, pooled), name=f"{name}.pool")
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(size)
    dtype = value.meta["val"].dtype
    made = {
        part: (torch.rand(sizes, generator=generator) * 2 * bound - bound).to(dtype)
        for part, sizes in (("weight", (classes, size)), ("bias", (classes,)))
    }
    nodes = [rewriter.set_constant(anchor.graph, f"{name}.{part}", each, [value]) for part, each in made.items()]
    return rewriter.insert(anchor, "aten.linear", (value, *nodes), name=f"{name}.linear")


def copied(
    rewriter: Rewriter, anchor: fx.Node, cut: Cut, cuts: Sequence[Cut], flops: int, result: fx.Node, name: str
) -> fx.Node:
    """Insert a copy, with weights of its own, of what stands behind the last cut point with the features of `cut`.

    Args:
        rewriter: inserts.
        anchor: what to insert before.
        cut: where the exit is.
        cuts: all cut points, in order.
        flops: of the whole Program: a twentieth of it, at the most, is a head.
        result: the logits of the model.
        name: prefix of names.

    Raises:
        OptionError: no cut point near the end has such features.
    """
    alike = [each for each in cuts if same_type(each.value, cut.value) and each.is_before(result)]
    last = alike[-1]
    if last.flops < (1 - _HEAD) * flops:
        shape = [str(expression(size)) for size in shape_of(cut.value) or ()]
        raise OptionError(
            f"pass 'insert-exits': head=copy needs features of one size before the model's own head and at the exit,"
            f" but no cut point near it has the [{', '.join(shape)}] of {name_of(cut.value)}: use head=linear there"
        )
    return _inserted(rewriter, anchor, last.behind(), {last.value: cut.value}, rewriter.program.constants, name)[result]


def of_module(rewriter: Rewriter, anchor: fx.Node, value: fx.Node, module: nn.Module, name: str) -> fx.Node:
    """Insert a module that takes the features and returns logits.

    Raises:
        OptionError: it cannot be captured, or does not return one tensor.
    """
    sizes = [static_size(size) or 2 for size in shape_of(value) or ()]
    try:
        found = capture(module, (torch.randn(sizes).to(value.meta["val"].dtype),))
    except CaptureError as error:
        raise OptionError(f"pass 'insert-exits': the module given for {name}: {error}") from error
    (graph,) = found.graphs.values()
    results: Any = output_of(graph).args[0]
    if len(results) != 1 or found.branches:
        raise OptionError(f"pass 'insert-exits': the module given for {name} must return one tensor, of logits")
    (result,) = results.values()
    return _inserted(rewriter, anchor, calls(graph), {placeholders(graph)[0]: value}, found.constants, name)[result]


def _inserted(
    rewriter: Rewriter,
    anchor: fx.Node,
    body: Iterable[fx.Node],
    given: Mapping[fx.Node, fx.Node],
    constants: Mapping[str, torch.Tensor],
    name: str,
) -> dict[fx.Node, fx.Node]:
    """Insert copies of operators before `anchor`, reading `given` and constants of their own; return them."""
    made = dict(given)

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in made and node.op == "get_attr":
            made[node] = rewriter.set_constant(
                anchor.graph, f"{name}.{node.target}", constants[str(node.target)].clone(), [anchor]
            )
        return made.get(node, node)

    for node in body:
        args, kwargs = fx.node.map_arg(node.args, copy_of), fx.node.map_arg(node.kwargs, copy_of)
        origins = [node] if node.graph is anchor.graph else [next(iter(given.values()))]
        target: Any = node.target
        made[node] = rewriter.insert(
            anchor, target, args, kwargs, name=f"{name}.{name_of(node)}", origins=origins
        )  # fmt: skip
    return made


def _channels(value: fx.Node) -> int:
    """Return the dimension of the channels: what the last layer before says of it."""
    rank = len(shape_of(value) or ())
    order, node = list(range(rank)), value
    while node.op == "call_function" and len(shape_of(node) or ()) == rank:
        name = operator_name(node.target)
        if any(part in name for part in _CHANNELS_LAST):
            return order.index(rank - 1)
        if any(part in name for part in _CHANNELS_FIRST):
            return order.index(1)
        dims: list[int] = list(range(rank))
        if name == "aten.permute":
            dims = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
        elif name == "aten.transpose.int":
            first, second = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
            dims[first], dims[second] = second, first
        order = [dims[dim] for dim in order]
        node = next((each for each in node.all_input_nodes if len(shape_of(each) or ()) == rank), value)
        if node is value or node.op != "call_function":
            break
    return rank - 1 if rank <= _TOKENS else 1
