"""One architecture of the zoo, and what gives random networks statistics like those of trained ones.

Cases not handled: a model whose outputs are random in evaluation mode cannot be compared with itself and is no entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Entry", "Inputs", "settle"]

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture.

    Attributes:
        name: unique, lower case, as `--filter` takes it.
        family: "cnn", "encoder", "decoder", ...: the heading that it is counted under.
        make: builds the module with random weights.
        inputs_for: example inputs of a given batch size, a tuple or a dict by parameter name.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs_for: Callable[[int], Inputs]

    def model(self, seed: int = 0) -> nn.Module:
        """Build the module in evaluation mode; the same seed gives the same weights."""
        torch.manual_seed(seed)
        model = self.make().eval()
        settle(model)
        return model

    def inputs(self, batch: int = 2, seed: int = 1) -> Inputs:
        """Return example inputs of `batch` samples; the same seed gives the same values."""
        torch.manual_seed(seed)
        return self.inputs_for(batch)


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Replace constant parameters (zero biases, unit scales) and statistics by random ones, in place.

    A scale of one, a bias of zero or a mean of zero would hide a folding bug.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and bool((parameter == parameter.view(-1)[0]).all()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer) * 0.2)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
