"""Importance by gradients: how much the loss would change without a class, to first order.

Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019): the square of the sum of weight times
gradient over a class, summed over batches. The loss: the cross-entropy where data come with classes; else the squared
norm of the outputs, whose gradient needs no labels (Aljundi et al., Memory Aware Synapses, ECCV 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from burnish.compiler.context import Context
from burnish.compiler.data import calibration_pairs, cross_entropy
from burnish.compiler.errors import InputError
from burnish.compiler.program import Program
from burnish.compiler.trainable import Trainable
from burnish.passes.pruning.groups import Group
from burnish.passes.pruning.importance import Scores, along, normalized, weights_of

__all__ = ["taylor"]

_SAMPLES = 256


def taylor(program: Program, groups: Sequence[Group], context: Context) -> list[Scores]:
    """Return how much each class of each group matters, [count] each, 1 on average.

    Raises:
        InputError: there are no data, they do not fit, no output is of floats, or gradients are not finite.
    """
    module = Trainable(program).eval()
    totals = [np.zeros(len(group.classes)) for group in groups]
    with torch.enable_grad():
        for inputs, target in calibration_pairs(program, context, _SAMPLES, "prune"):
            module.zero_grad()
            module.backward(_loss(module(**inputs), target))
            with torch.no_grad():
                products = {
                    name: (value * value.grad).double()
                    for name, value in module.trained.items()
                    if value.grad is not None
                }
            for group, total in zip(groups, totals, strict=True):
                changes = np.zeros(len(group.classes))
                for member in weights_of(group):
                    if member.constant in products:
                        changes += along(member, products[member.constant], len(group.classes))
                total += changes**2
    if not all(np.isfinite(total).all() for total in totals):
        raise InputError("pass 'prune': taylor: the gradients of the loss are not finite on these data")
    return [normalized(total) for total in totals]


def _loss(outputs: dict[str, Any], target: Any) -> torch.Tensor:
    floating = [each for each in outputs.values() if isinstance(each, torch.Tensor) and each.requires_grad]
    if not floating:
        raise InputError("pass 'prune': taylor needs an output of floats that depends on the weights")
    first = floating[0]
    if isinstance(target, torch.Tensor) and not target.is_floating_point() and target.shape == first.shape[:-1]:
        return cross_entropy(first, target, "pass 'prune': taylor")
    return sum((each.float().square().sum() for each in floating), start=torch.zeros(()))
