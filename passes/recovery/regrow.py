"""Dynamic sparse training: on a schedule the least weights of a sparse layer go, and others take their places.

SET: Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity (2018): new ones
at random. RigL: Evci et al., Rigging the Lottery (ICML 2020): those with the largest gradients; its schedule, a part
that falls to 0 as a cosine over the first three quarters of the steps.

Not handled: masks of a pattern, two of every four: these stay.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from burnish.compiler.graphs import calls, name_of
from burnish.compiler.trainable import Trainable
from burnish.passes.pruning.masks import masked_weight

__all__ = ["Regrow", "Regrowing", "is_pattern"]

Regrow = Literal["set", "rigl"]
_LAST = 0.75


class Regrowing:
    """Moves the masks of a Trainable.

    Args:
        module: has the masks.
        kind: set or rigl.
        every: steps from one move to the next.
        part: of the weights that a layer has, how many move at first.
        steps: of the whole training.

    Attributes:
        masks: by name of the mask, whether a weight counts.
    """

    def __init__(self, module: Trainable, kind: Regrow, every: int, part: float, steps: int) -> None:
        self.module, self.kind, self.every, self.part, self.steps = module, kind, every, part, steps
        self.masks: dict[str, torch.Tensor] = {}
        self._layers: list[tuple[str, str, str]] = []
        for graph in module.program.graphs.values():
            for node in calls(graph):
                pair = masked_weight(node)
                if pair is None or str(pair.weight.target) not in module.trained:
                    continue
                weight, mask = str(pair.weight.target), str(pair.mask.target)
                if not is_pattern(module.program.constants[mask]):
                    self._layers.append((weight, mask, name_of(node)))
                    self.masks[mask] = module.program.constants[mask].clone()
        module.program.constants.update(self.masks)
        module.observe(frozenset(product for *_, product in self._layers))

    def is_due(self, step: int) -> bool:
        """Tell whether masks move behind the step of this number, from 0."""
        return (step + 1) % self.every == 0 and step < self.steps * _LAST

    def before_backward(self) -> None:
        """Ask for the gradients of what masks leave."""
        for *_, product in self._layers:
            self.module.observed[product].retain_grad()

    @torch.no_grad()
    def move(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Move every mask; new weights start from 0, without momentum."""
        share = self.part / 2 * (1 + math.cos(math.pi * step / (self.steps * _LAST)))
        for weight, mask, product in self._layers:
            value, inside = self.module.trained[weight], self.masks[mask]
            gradient = self.module.observed[product].grad
            if gradient is None:
                continue
            free = ~inside
            count = min(int(share * int(inside.sum())), int(free.sum()))
            if not count:
                continue
            size = torch.where(inside, value.abs(), math.inf).flatten()
            gone = size.topk(count, largest=False).indices
            if self.kind == "rigl":
                wanted = torch.where(free, gradient.abs(), -1.0).flatten()
            else:
                wanted = torch.where(free, torch.rand(value.shape), -1.0).flatten()
            new = wanted.topk(count).indices
            inside.view(-1)[gone] = False
            inside.view(-1)[new] = True
            moved = torch.cat([gone, new])
            value.view(-1)[moved] = 0
            for state in optimizer.state[value].values():
                if isinstance(state, torch.Tensor) and state.shape == value.shape:
                    state.view(-1)[moved] = 0


def is_pattern(mask: torch.Tensor) -> bool:
    """Tell whether a mask keeps as many of every four neighbours along dimension 1, as no other mask happens to."""
    if mask.dim() < 2 or mask.shape[1] % 4 or mask.numel() < 16:
        return False
    counts = mask.movedim(1, -1).reshape(-1, 4).sum(1)
    return 0 < int(counts[0]) < 4 and bool((counts == counts[0]).all())
