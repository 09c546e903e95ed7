"""How views and rearrangements move units: reshapes, permutations, windows, concatenations, expansions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from burnish.passes.pruning.flow import Flow, Value, flow_rule, sizes_of
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Numbers

__all__: list[str] = []

_END = 2**62


@flow_rule(
    "aten.reshape",
    "aten.view",
    "aten._unsafe_view",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze",
)
def reshaped(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Sizes change, the order of the elements does not."""
    source = node.args[0]
    return flow.layout(source).reshaped(sizes_of(source), sizes_of(node), flow.units)


@flow_rule("aten.permute")
def permuted(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Dimensions change places."""
    rank = len(given["dims"])
    return flow.layout(given["self"]).moved({dim % rank: place for place, dim in enumerate(given["dims"])})


@flow_rule("aten.transpose.int")
def transposed(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Two dimensions change places."""
    rank = len(sizes_of(node))
    first, second = given["dim0"] % rank, given["dim1"] % rank
    return flow.layout(given["self"]).moved({**{dim: dim for dim in range(rank)}, first: second, second: first})


@flow_rule("aten.t")
def transposed_matrix(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """A matrix is mirrored."""
    return flow.layout(given["self"]).moved({0: 1, 1: 0} if len(sizes_of(node)) == 2 else {0: 0})


@flow_rule("aten.expand")
def expanded(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """A dimension of size 1 is repeated; new dimensions come first."""
    source, rank = given["self"], len(sizes_of(node))
    shift = rank - len(sizes_of(source))
    return flow.layout(source).moved({dim: dim + shift for dim in range(rank - shift)})


@flow_rule("aten.repeat")
def repeated(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Whole dimensions are repeated."""
    source, times = given["self"], given["repeats"]
    rank = len(times)
    shift = rank - len(sizes_of(source))
    blocks = []
    for block in flow.layout(source).blocks:
        counts = [times[dim + shift] for dim in block.dims]
        if any(not isinstance(count, int) or (count != 1 and len(counts) > 1) for count in counts):
            flow.units.freeze(block.units, "it is repeated")
        else:
            blocks.append(Block(tuple(dim + shift for dim in block.dims), np.tile(block.units, counts)))
    return Layout.of(blocks)


@flow_rule("aten.repeat_interleave.self_int")
def repeated_each(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Every position of a dimension is repeated."""
    source, dim, count = given["self"], given["dim"], given["repeats"]
    if not isinstance(dim, int) or not isinstance(count, int) or given["output_size"] is not None:
        flow.freeze(source, "it is repeated")
        return Layout()
    dim %= len(sizes_of(node))
    return Layout.of(
        Block(block.dims, np.repeat(block.units, count, block.dims.index(dim)) if dim in block.dims else block.units)
        for block in flow.layout(source).blocks
    )


@flow_rule("aten.slice.Tensor")
def sliced(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """A window along one dimension, or every `step`-th position of all of it."""
    source, dim, step = given["self"], given["dim"] % len(sizes_of(node)), given["step"]
    start, end = (0 if given["start"] is None else given["start"]), (_END if given["end"] is None else given["end"])
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
        return flow.kept(source, "it is sliced by sizes", [dim])
    index, size = slice(start, end, step), sizes_of(source)[dim]
    if step > 1:
        if not isinstance(size, int) or size % step or len(range(size)[index]) != size // step:
            return flow.kept(source, "it is sliced in steps that leave some over", [dim])
        units = flow.along(source, dim)
        if units is not None:
            # What stands between two steps goes with them: the others are still that far apart.
            flow.units.tie_along(units.reshape(-1, step), 1)
    return flow.layout(source).window(dim, index, flow.units)


@flow_rule("aten.select.int")
def selected(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """One position of a dimension, which goes."""
    return _position(given["self"], given["dim"], given["index"], flow)


@flow_rule("aten.unbind.int")
def unbound(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Every position of a dimension, one by one."""
    return [_position(given["self"], given["dim"], index, flow) for index in range(len(node.meta["val"]))]


@flow_rule("aten.split_with_sizes", "aten.split.Tensor", "aten.chunk")
def split(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Windows side by side."""
    source, results = given["self"], node.meta["val"]
    dim = given["dim"] % len(sizes_of(source))
    sizes = [each.shape[dim] for each in results]
    if "split_sizes" not in given or not all(isinstance(size, int) for size in sizes):
        return [flow.kept(source, "it is split by sizes", [dim]) for _ in results]
    ends = np.cumsum(sizes).tolist()
    layout = flow.layout(source)
    return [layout.window(dim, slice(end - size, end), flow.units) for size, end in zip(sizes, ends, strict=True)]


@flow_rule("aten.cat")
def concatenated(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Parts side by side."""
    parts, rank = given["tensors"], len(sizes_of(node))
    dim = given["dim"] % rank
    blocks = [flow.layout(part).block(dim) for part in parts]
    known = [block for block in blocks if block is not None]
    if len({block.dims for block in known}) > 1 or (len(known) < len(parts) and any(len(b.dims) > 1 for b in known)):
        layouts = [flow.layout(part).narrowed(dim, flow.units) for part in parts]
        blocks = [layout.block(dim) for layout in layouts]
        known = [block for block in blocks if block is not None]
    else:
        layouts = [flow.layout(part) for part in parts]
    others = _side_by_side([layout.without([dim]) for layout in layouts], flow)
    if not known:
        return others
    dims = known[0].dims
    pieces = [
        block.units if block is not None else _still(sizes_of(part)[dim], flow)
        for block, part in zip(blocks, parts, strict=True)
    ]
    if any(piece is None for piece in pieces):
        for block in known:
            flow.units.freeze(block.units, "it is concatenated with something of dynamic size")
        return others
    joined = np.concatenate([piece for piece in pieces if piece is not None], axis=dims.index(dim))
    return Layout.of((*others.blocks, Block(dims, joined)))


@flow_rule("aten.roll", "aten.flip")
def rolled(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Positions change places along some dimensions."""
    dims = given["dims"] or range(len(sizes_of(node)))
    return flow.kept(given["self"], "its positions are moved around", list(dims))


@flow_rule(
    "aten.constant_pad_nd", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.replication_pad2d", "aten.pad"
)
def padded(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Positions are added around."""
    amounts = given["pad"] if "pad" in given else given["padding"]
    dims = [-1 - index // 2 for index, amount in enumerate(amounts) if not (isinstance(amount, int) and amount == 0)]
    return flow.kept(given["self"], "it is padded", dims)


@flow_rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def shuffled(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Channels, r * r in a row, become one, r times as high and wide; or the reverse."""
    dim = len(sizes_of(node)) - 3
    layout = flow.kept(given["self"], "its positions are moved around", [dim + 1, dim + 2])
    channels = layout.along(dim, flow.units)
    rest = layout.without([dim])
    if channels is None:
        return rest
    if "upscale_factor" in given:
        grouped = channels.reshape(-1, given["upscale_factor"] ** 2)
        flow.units.tie_along(grouped, 1)
        channels = grouped[:, 0]
    else:
        channels = np.repeat(channels, given["downscale_factor"] ** 2)
    return Layout.of((*rest.blocks, Block((dim,), channels)))


def _side_by_side(layouts: list[Layout], flow: Flow) -> Layout:
    """Tie what is put side by side, as in a sum; return the layout of all but that dimension."""
    first, *others = layouts
    for other in others:
        for block in {id(each): each for layout in (first, other) for each in layout.blocks}.values():
            mine, theirs = first.block(block.dims[0]), other.block(block.dims[0])
            if mine is not None and theirs is not None and mine.dims == theirs.dims:
                flow.units.tie(mine.units, theirs.units)
            else:
                for each in (mine, theirs):
                    if each is not None:
                        flow.units.freeze(each.units, "it stands beside something that keeps its size")
                first = first.without(block.dims)
    return first


def _position(source: fx.Node, dim: int, index: Any, flow: Flow) -> Layout:
    """Return the layout of one position along `dim`."""
    rank = len(sizes_of(source))
    dim %= rank
    block = flow.layout(source).block(dim)
    if not isinstance(index, int) or (block is not None and len(block.dims) == 1):
        layout = flow.kept(source, "a position of it is taken by number", [dim])
    else:
        layout = flow.layout(source).window(dim, np.array([index]), flow.units)
    return _dropped(layout, dim, rank)


def _dropped(layout: Layout, dim: int, rank: int) -> Layout:
    """Return the layout without dimension `dim`, of size 1 or holding no units."""
    moved = {each: each - (each > dim) for each in range(rank) if each != dim}
    blocks = []
    for block in layout.blocks:
        if dim in block.dims:
            axis = block.dims.index(dim)
            if len(block.dims) == 1:
                continue
            units = np.take(block.units, 0, axis)
            blocks.append(Block(block.dims[:axis] + block.dims[axis + 1 :], units))
        else:
            blocks.append(block)
    return Layout.of(blocks).moved(moved)


def _still(size: int | torch.SymInt, flow: Flow) -> Numbers | None:
    """Return units for positions that stay; None where nobody knows how many."""
    if not isinstance(size, int):
        return None
    found = flow.units.new(size)
    flow.units.freeze(found, "it is put beside something that can be removed")
    return found
