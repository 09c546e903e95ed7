"""Seconds of operators: the cost model's on a device, or those of a profile."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

import numpy as np
from torch import fx

from burnish.compiler.cost import NodeCost
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.graphs import name_of
from burnish.compiler.profile import Profile
from burnish.compiler.provenance import module_of
from burnish.passes.partition.devices import Device
from burnish.passes.partition.problem import Array

__all__ = ["modeled", "with_profile"]

_LAST = re.compile(r"(.+)([_./:])([^_./:]*)")


def modeled(nodes: Sequence[fx.Node], costs: Mapping[fx.Node, NodeCost], device: Device) -> Array:
    """Return the seconds that operators take by the roofline: computing or memory, whichever is slower.

    Williams et al., "Roofline: An Insightful Visual Performance Model" (2009).
    """

    def seconds(node: fx.Node) -> float:
        if node not in costs:
            return 0.0
        figures = costs[node].figures
        moved = estimated(figures.bytes_read) + estimated(figures.bytes_written)
        return max(estimated(figures.flops) / device.flops, moved / device.bandwidth)

    return np.array([seconds(node) for node in nodes])


def with_profile(nodes: Sequence[fx.Node], model: Array, profile: Profile) -> Array:
    """Return the seconds that operators took: a row counts for the operator that it is named after.

    A runtime names what it fused or took apart after one of the operators, and adds to the name. Rows without such a
    name are shared out over the operators of their modules, or over all, as the model wants it.
    """
    index = {name_of(node): position for position, node in enumerate(nodes)}
    found = np.zeros(len(nodes))
    modules = _modules(nodes)
    rest = 0.0
    for row in profile:
        name = _known_name(row.node, index)
        if name is not None:
            found[index[name]] += row.seconds
            continue
        members = modules.get(row.module, [])
        if members:
            found[members] += row.seconds * _shares(model[members])
        else:
            rest += row.seconds
    return found + rest * _shares(model)


def _known_name(name: str, known: Container[str]) -> str | None:
    """Return the operator that a runtime's node is named after."""
    while name not in known:
        match = _LAST.fullmatch(name)
        # A number tells one operator from another.
        if match is None or (match[2] == "_" and match[3].isdigit()):
            return None
        name = match[1]
    return name


def _modules(nodes: Sequence[fx.Node]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, node in enumerate(nodes):
        found.setdefault(module_of(node), []).append(position)
    return found


def _shares(weights: Array) -> Array:
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / max(len(weights), 1))
