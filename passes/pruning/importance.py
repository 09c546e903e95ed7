"""Importance: how much a class matters, estimated from the weights that it lies along.

l1, l2: the norm of all its weights (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017), of every layer that
it reaches into (Fang et al., DepGraph, CVPR 2023): sums over positions and layers.
batch-norm: the sum of its batch norms' scales (Liu et al., Network Slimming, ICCV 2017).
lamp: the l2 norm's square, as a part of those of the classes that matter more (Lee et al., LAMP, ICLR 2021).
fpgm: the sum of its distances to the others (He et al., Filter Pruning via Geometric Median, CVPR 2019).
taylor: how much the loss would change, to first order (Molchanov et al., Importance Estimation, CVPR 2019).
random: the control.

Scores of a group are divided by their mean, so that groups of different scale can be compared; but for lamp, which
compares by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from burnish.compiler.constant_uses import Use
from burnish.passes.pruning.groups import Group, Member

__all__ = ["Importance", "Scores", "importance_of"]

Importance = Literal["l1", "l2", "batch-norm", "lamp", "fpgm", "taylor", "random"]
Scores = npt.NDArray[np.float64]
Products = Mapping[str, list[torch.Tensor]]
"""For every trained constant, by name, weight times gradient for every batch of data, summed as needed."""


def importance_of(group: Group, constants: Mapping[str, torch.Tensor], kind: Importance, seed: int) -> Scores:
    """Return how much each class of a group matters, [count], 1 on average.

    Args:
        group: the group.
        constants: of the Program, by name.
        kind: the estimate; not taylor: see `gradients`. A group without batch norms is compared by l2.
        seed: of random scores.
    """
    count = len(group.classes)
    if kind == "random":
        return np.random.default_rng([seed, int(group.classes[0])]).random(count)
    if kind == "fpgm":
        return normalized(sum((_distances(each, constants, count) for each in weights_of(group)), np.zeros(count)))
    if kind == "batch-norm":
        scales = [each for each in group.members if any(_is_scale(use) for use in each.uses)]
        if scales:
            return normalized(_sums(scales, constants, 1, count))
    if kind == "l1":
        return normalized(_sums(weights_of(group), constants, 1, count))
    squares = _sums(weights_of(group), constants, 2, count)
    return _lamp(squares) if kind == "lamp" else normalized(np.sqrt(squares))


def weights_of(group: Group) -> list[Member]:
    """Return the members that are weights, without biases, statistics and scales; all of them where there are none."""
    return [each for each in group.members if each.is_weight] or list(group.members)


def along(member: Member, value: torch.Tensor, count: int) -> Scores:
    """Return the sums of a tensor like the constant over what each class of the group has of it, [count]."""
    rows = value.movedim(member.dim, 0).reshape(value.shape[member.dim], -1).sum(1).cpu().numpy()
    inside = member.place >= 0
    found: Scores = np.bincount(member.place[inside], weights=rows[inside], minlength=count).astype(np.float64)
    return found


def normalized(scores: Scores) -> Scores:
    """Return scores that are 1 on average."""
    mean = float(scores.mean())
    return scores / mean if mean > 0 else scores


def _is_scale(use: Use) -> bool:
    return use.slot == "weight" and "batch_norm" in use.operator


def _sums(members: list[Member], constants: Mapping[str, torch.Tensor], power: int, count: int) -> Scores:
    total = np.zeros(count)
    for member in members:
        total += along(member, constants[member.constant].detach().double().abs().pow(power), count)
    return total


def _lamp(squares: Scores) -> Scores:
    order = np.argsort(squares, kind="stable")
    # What matters as much or more, the class itself included.
    above = np.cumsum(squares[order][::-1])[::-1]
    found = np.empty_like(squares)
    found[order] = squares[order] / np.maximum(above, np.finfo(np.float64).tiny)
    return found


def _distances(member: Member, constants: Mapping[str, torch.Tensor], count: int) -> Scores:
    """Return the sum of the distances of each class's weights to those of the others, place by place."""
    value = constants[member.constant].detach().float()
    rows = value.movedim(member.dim, 0).reshape(value.shape[member.dim], -1)
    inside = np.flatnonzero(member.place >= 0)
    order = inside[np.argsort(member.place[inside], kind="stable")]
    sizes = np.bincount(member.place[order], minlength=count)
    if len(set(sizes.tolist())) != 1:
        return np.zeros(count)
    vectors = rows[torch.from_numpy(order)].reshape(count, -1)
    found: Scores = torch.cdist(vectors, vectors).double().sum(1).numpy()
    return found
