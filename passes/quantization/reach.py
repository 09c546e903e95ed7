"""How far the channels of values reach over the calibration data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from burnish.compiler import interpreter
from burnish.compiler.context import Context
from burnish.compiler.data import calibration_inputs
from burnish.compiler.program import Program
from burnish.compiler.progress import working

__all__ = ["channel_reach"]


def channel_reach(
    program: Program, context: Context, dims: Mapping[fx.Node, int], samples: int, purpose: str
) -> dict[fx.Node, torch.Tensor]:
    """Return the largest magnitude of every channel, float64 [C], of those values that the data reach.

    Args:
        program: what to run on the data.
        context: has them.
        dims: for every value the dimension of its channels.
        samples: how much of the data to use at the most.
        purpose: the pass that asks, for messages.

    Raises:
        InputError: there are no calibration data, or they do not fit.
    """
    reach: dict[fx.Node, torch.Tensor] = {}

    def observe(node: fx.Node, value: object) -> None:
        if node in dims and isinstance(value, torch.Tensor) and value.numel():
            channels = value.detach().abs().movedim(dims[node], 0)
            most = channels.reshape(len(channels), -1).amax(1).double()
            reach[node] = torch.maximum(reach[node], most) if node in reach else most

    with working("calibrating", context.progress):
        for batch in calibration_inputs(program, context, samples, purpose):
            interpreter.run(program, batch, observe)
    return reach
