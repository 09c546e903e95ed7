"""Masks: constants of booleans that weights are multiplied by, `mul(@w, @w.mask)`.

A weight counts as zero where its mask is False, and does so in training: no gradient passes there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.node import Argument

from burnish.compiler.operators import find_operator
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.types import tensor_of

__all__ = ["Masked", "masked_weight", "masks_of", "write_masks"]

_MUL = find_operator("aten.mul.Tensor")


@dataclass(frozen=True, slots=True)
class Masked:
    """A product of a weight and its mask: the nodes of the two constants."""

    weight: fx.Node
    mask: fx.Node


def masks_of(program: Program) -> dict[str, str]:
    """Return the mask of every masked weight, both by the names of their constants.

    Left out are weights that are multiplied by different masks, those that share a mask, and what a run updates.
    """
    found: dict[str, str] = {}
    several: set[str] = set()
    updated = program.mutable_constants()
    for _, graph in program.all_graphs():
        for node in graph.find_nodes(op="call_function", target=_MUL):
            pair = masked_weight(node)
            if pair is None:
                continue
            weight, mask = str(pair.weight.target), str(pair.mask.target)
            if found.setdefault(weight, mask) != mask or {weight, mask} & updated:
                several.add(weight)
    times = Counter(found.values())
    return {weight: mask for weight, mask in found.items() if weight not in several and times[mask] == 1}


def masked_weight(node: fx.Node) -> Masked | None:
    """Return `node` as the product of a floating constant and a constant of booleans of its shape; None otherwise."""
    if node.target is not _MUL:
        return None
    pairs = (node.args[:2], node.args[1::-1])
    return next((Masked(*pair) for pair in pairs if _is_masking(*pair)), None)  # type: ignore[arg-type]


def write_masks(rewriter: Rewriter, masks: Mapping[str, torch.Tensor]) -> None:
    """Let whatever reads a weight read it through its mask; a weight that has a mask gets this one instead.

    Args:
        rewriter: makes the changes.
        masks: True where a weight stays, by the name of the weight. One that is True throughout is not written.
    """
    program = rewriter.program
    known = masks_of(program)
    changed = {
        known[name]: mask
        for name, mask in masks.items()
        if name in known and not torch.equal(mask, program.constants[known[name]])
    }
    if changed:
        with rewriter.rewrite("update-mask"):
            rewriter.replace_constants(changed)
    places = defaultdict(list)
    for _, graph in program.all_graphs():
        for node in graph.find_nodes(op="get_attr"):
            places[str(node.target)].append(node)
    for name, mask in masks.items():
        if name in known or not bool(mask.all()):
            for weight in places[name]:
                _write(rewriter, weight, mask, known)


def _write(rewriter: Rewriter, weight: fx.Node, mask: torch.Tensor, known: dict[str, str]) -> None:
    """Put a product in front of what reads a weight in its graph without its mask."""
    readers = [user for user in weight.users if masked_weight(user) is None]
    if not readers:
        return
    name = str(weight.target)
    with rewriter.rewrite("mask"):
        if name in known:
            constant = rewriter.constant_node(weight.graph, known[name], [weight])
        else:
            constant = rewriter.set_constant(weight.graph, f"{name}.mask", mask, [weight])
            known[name] = str(constant.target)
        origins = [weight, *readers]
        args = (weight, constant)
        product = rewriter.insert(min(readers), "aten.mul.Tensor", args, name=f"{name}.masked", origins=origins)
        for each in readers:
            rewriter.redirect(each, weight, product)


def _is_masking(weight: Argument, mask: Argument) -> bool:
    if not all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (weight, mask)):
        return False
    value, zeros = tensor_of(weight), tensor_of(mask)
    if value is None or zeros is None:
        return False
    return value.is_floating_point() and zeros.dtype == torch.bool and value.shape == zeros.shape
