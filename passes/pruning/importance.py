"""Importance: how much a class matters, estimated from the constants that it lies along.

magnitude: the norm of all its weights (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017), of every layer
that it reaches into (Fang et al., DepGraph, CVPR 2023). random: the control.

Scores of a group are divided by their mean, so that groups of different scale can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from burnish.passes.pruning.groups import Group

__all__ = ["Importance", "Scores", "importance_of"]

Importance = Literal["l1", "l2", "random"]
Scores = npt.NDArray[np.float64]


def importance_of(group: Group, constants: Mapping[str, torch.Tensor], kind: Importance, seed: int) -> Scores:
    """Return how much each class of a group matters, [count], 1 on average.

    Args:
        group: the group.
        constants: of the Program, by name.
        kind: the estimate.
        seed: of random scores.
    """
    count = len(group.classes)
    if kind == "random":
        return np.random.default_rng([seed, int(group.classes[0])]).random(count)
    power = 1 if kind == "l1" else 2
    total = np.zeros(count)
    for member in group.members:
        value = constants[member.constant].detach().double().abs().pow(power)
        along = value.movedim(member.dim, 0).reshape(value.shape[member.dim], -1).sum(1).cpu().numpy()
        inside = member.place >= 0
        total += np.bincount(member.place[inside], weights=along[inside], minlength=count)
    scores: Scores = total if power == 1 else np.sqrt(total)
    mean = float(scores.mean())
    return scores / mean if mean > 0 else scores
