"""`burnish::conv_act` and `burnish::linear_act`: a layer, a residual to add, and an activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.compiler.fused.activations import activate
from burnish.compiler.fused.registry import fused_operator

__all__ = ["conv_act", "linear_act"]


@fused_operator(
    "conv_act(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups=1, *,"
    " bool transposed=False, int[] output_padding=[], Tensor? residual=None, str activation='none',"
    " float[] parameters=[]) -> Tensor"
)
def conv_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
    residual: Tensor | None = None,
    activation: str = "none",
    parameters: Sequence[float] = (),
) -> Tensor:
    """activation(convolution(input) + residual) over 1, 2 or 3 spatial dimensions.

    Args:
        input: [N, C, spatial...].
        weight: [O, C / groups, kernel...], or [C, O / groups, kernel...] where `transposed`.
        bias: [O] or None.
        stride: one number for every spatial dimension; `padding` and `dilation` likewise.
        padding: zeros on both sides.
        dilation: step between the kernel's taps.
        groups: number of groups of channels.
        transposed: a transposed convolution.
        output_padding: of a transposed convolution; [] is zero.
        residual: a tensor of the result's shape, added before the activation.
        activation: see `activations.ACTIVATIONS`.
        parameters: of the activation.
    """
    outside = list(output_padding) or [0] * len(stride)
    y = torch.ops.aten.convolution.default(
        input, weight, bias, list(stride), list(padding), list(dilation), transposed, outside, groups
    )
    return activate(y if residual is None else y + residual, activation, parameters)


@fused_operator(
    "linear_act(Tensor input, Tensor weight, Tensor? bias=None, *, Tensor? residual=None, str activation='none',"
    " float[] parameters=[]) -> Tensor"
)
def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    parameters: Sequence[float] = (),
) -> Tensor:
    """activation(input @ weight.T + bias + residual).

    Args:
        input: [..., I].
        weight: [O, I].
        bias: [O] or None.
        residual: a tensor of the result's shape [..., O], added before the activation.
        activation: see `activations.ACTIVATIONS`.
        parameters: of the activation.
    """
    y = torch.ops.aten.linear.default(input, weight, bias)
    return activate(y if residual is None else y + residual, activation, parameters)
