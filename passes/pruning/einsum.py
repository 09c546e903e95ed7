"""How an einsum ties units: by letters."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from burnish.passes.pruning.flow import Flow, Value, flow_rule, sizes_of
from burnish.passes.pruning.layouts import Block, Layout
from burnish.passes.pruning.units import Numbers

__all__: list[str] = []

_STAYS = "what it meets in an einsum stays"


@flow_rule("aten.einsum")
def einsum(node: fx.Node, given: dict[str, Any], flow: Flow) -> Value:
    """Dimensions with one letter are one; those that the result does not have are summed over."""
    left, arrow, result = given["equation"].replace(" ", "").partition("->")
    operands, terms = given["tensors"], left.split(",")
    if not arrow or "." in left or any(len(set(term)) < len(term) for term in terms):
        for each in operands:
            flow.freeze(each, "an einsum with an ellipsis, a diagonal or no result")
        return Layout()
    found: dict[str, Numbers | None] = {}
    times = Counter(left.replace(",", ""))
    for value, term in zip(operands, terms, strict=True):
        layout = _narrow(flow.layout(value), term, result, flow)
        for dim, letter in enumerate(term):
            if sizes_of(value)[dim] == 1:
                continue
            units = layout.along(dim, flow.units)
            if units is not None and times[letter] == 1 and letter not in result:
                flow.units.freeze(units, "it is reduced over")
            if letter in found:
                flow.tie(found[letter], units, _STAYS)
                units = None if found[letter] is None else units
            found[letter] = units
    blocks = [(place, found.get(letter)) for place, letter in enumerate(result)]
    return Layout.of(Block((place,), units) for place, units in blocks if units is not None)


def _narrow(layout: Layout, term: str, result: str, flow: Flow) -> Layout:
    """Return the layout whose blocks have one dimension each: one that the result has, if there is one."""
    for block in layout.blocks:
        if len(block.dims) > 1:
            kept = next((dim for dim in block.dims if term[dim] in result), block.dims[0])
            layout = layout.narrowed(kept, flow.units)
    return layout
