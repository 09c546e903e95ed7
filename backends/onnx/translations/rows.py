"""Rows by number: what is taken, and put back, in a node each.

Early exits do this for every batch, between operators that take microseconds, so every node counts: torch's own
translations have three for what is taken and eight for what is put back.
"""

from __future__ import annotations

from typing import Any

from burnish.backends.onnx.translations.builder import Builder

__all__ = ["index_copy", "index_select"]


def index_select(op: Builder, input: Any, dim: int, index: Any) -> Any:
    """Gather, or GatherND where the numbers stand in a column already; an index that is one number takes one row."""
    if not len(input.shape):
        return op("Identity", input)
    column = _column(index)
    if column is not None and dim % len(input.shape) == 0:
        return op("GatherND", input, column)
    return op("Gather", input, _vector(op, index), axis=dim)


def index_copy(op: Builder, input: Any, dim: int, index: Any, source: Any) -> Any:
    """ScatterND, for other dimensions than the first between Transposes."""
    rank = len(input.shape)
    if not rank:
        return op("Reshape", source, op.integers())
    column = _column(index)
    if column is None:
        column = op("Unsqueeze", _vector(op, index), op.integers(1))
    if not len(source.shape):
        source = op("Unsqueeze", source, op.integers(0))
    dim %= rank
    if not dim:
        return op("ScatterND", input, column, source)
    order = [dim, *(each for each in range(rank) if each != dim)]
    there, put = (op("Transpose", each, perm=order) for each in (input, source))
    return op("Transpose", op("ScatterND", there, column, put), perm=[order.index(each) for each in range(rank)])


def _vector(op: Builder, index: Any) -> Any:
    return index if len(index.shape) else op("Unsqueeze", index, op.integers(0))


def _column(index: Any) -> Any:
    """Return the matrix of one column, as what is not zero in a vector gives, that an index was taken out of."""
    node = index.producer()
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1 or len(index.shape) != 1:
        return None
    source = node.inputs[0]
    return source if source is not None and len(source.shape) == 2 and source.shape[1] == 1 else None
