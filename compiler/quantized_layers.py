"""Float modules with pairs, made of the quantized modules of `torch.ao.nn`: what `quantized_modules` puts in.

Their constants are called as the pass `quantize` calls them: `<path>.weight.integers`, `<path>.weight.scales`. What
they compute inside, on tensors without a mark, is float.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from burnish.compiler.operators import find_operator
from burnish.compiler.quantized_values import INTEGERS, Numbers, dequantized, marked, numbers_of, rounded

__all__ = [
    "DeQuantize",
    "DynamicLinear",
    "Functional",
    "Layer",
    "PReLU",
    "Quantize",
    "Rounded",
    "batch_norm",
    "convolution",
    "embedding",
    "float_base",
    "transposed_convolution",
]

Activation = Callable[[torch.Tensor], torch.Tensor]
Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

# As quantize-dynamic has it.
_EPS = float(torch.finfo(torch.float32).eps)
_NUMBERS = ("scale", "zero_point")


class Quantize(nn.Module):
    """Where a model becomes quantized."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.numbers: Numbers = (float(module.scale), int(module.zero_point), INTEGERS[module.dtype])

    def forward(self, x: torch.Tensor) -> Any:
        """Return the pair."""
        return rounded(x, self.numbers)


class DeQuantize(nn.Module):
    """Where it becomes float again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same values."""
        return dequantized(x)


class Layer(nn.Module):
    """A convolution or linear layer with an activation; ConvAdd has a second input, added before the activation."""

    def __init__(self, module: Any, compute: Compute, activation: Activation | None = None) -> None:
        super().__init__()
        self.numbers = _result_numbers(module)
        self.weight = _Weight(module.weight())
        self.bias: torch.Tensor | None
        self.register_buffer("bias", _bias(module))
        self.compute, self.activation = compute, activation

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> Any:
        """Run it."""
        y = self.compute(dequantized(x), self.weight(), self.bias)
        y = y if extra is None else y + dequantized(extra)
        return rounded(y if self.activation is None else self.activation(y), self.numbers)


class DynamicLinear(nn.Module):
    """A linear layer whose input gets its range at run time; with a half-precision weight, a float layer."""

    def __init__(self, module: Any, activation: Activation | None = None) -> None:
        super().__init__()
        weight = module.weight()
        self.is_integer = weight.is_quantized
        if self.is_integer:
            self.weight: Any = _Weight(weight)
        else:
            self.register_buffer("weight", weight.detach().float())
        self.bias: torch.Tensor | None
        self.register_buffer("bias", _bias(module))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        y = (
            functional.linear(_over_its_range(x), self.weight(), self.bias)
            if self.is_integer
            else (functional.linear(x, self.weight, self.bias))
        )
        return y if self.activation is None else self.activation(y)


class Rounded(nn.Module):
    """A float module with a pair behind it."""

    def __init__(self, inner: nn.Module, module: Any) -> None:
        super().__init__()
        self.inner = inner
        self.numbers = _result_numbers(module)

    def forward(self, *args: Any) -> Any:
        """Run it."""
        return rounded(self.inner(*map(dequantized, args)), self.numbers)


class PReLU(nn.Module):
    """PReLU, of which torch quantizes the slopes too."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.numbers = _result_numbers(module)
        self.slopes: torch.Tensor
        self.register_buffer("slopes", module.weight.dequantize())

    def forward(self, x: torch.Tensor) -> Any:
        """Run it."""
        return rounded(functional.prelu(dequantized(x), self.slopes), self.numbers)


class Functional(nn.Module):
    """The operations of QFunctional."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.numbers = _result_numbers(module)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """Return x + y."""
        return rounded(dequantized(x) + dequantized(y), self.numbers)

    def add_relu(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """relu(x + y)."""
        return rounded(functional.relu(dequantized(x) + dequantized(y)), self.numbers)

    def mul(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """Return x * y."""
        return rounded(dequantized(x) * dequantized(y), self.numbers)

    def matmul(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """Return x @ y."""
        return rounded(torch.matmul(dequantized(x), dequantized(y)), self.numbers)

    def cat(self, x: list[torch.Tensor], dim: int = 0) -> Any:
        """Return all of x one after the other."""
        return rounded(torch.cat([dequantized(each) for each in x], dim), self.numbers)

    def add_scalar(self, x: torch.Tensor, y: float) -> torch.Tensor:
        """Return x + y, float: torch moves the zero point, or finds another scale."""
        return dequantized(x) + y

    def mul_scalar(self, x: torch.Tensor, y: float) -> Any:
        """Return x * y: the same integers with another scale, if y is positive."""
        numbers, result = numbers_of(x), dequantized(x) * y
        if numbers is None or y <= 0 or not math.isfinite(y):
            return result
        scale, zero_point, dtype = numbers
        return marked(result, (scale * y, zero_point, dtype))


def convolution(module: Any) -> Compute:
    """Return what a convolution of torch computes, before its activation."""
    kinds = (functional.conv1d, functional.conv2d, functional.conv3d)
    stride, dilation, groups, mode = module.stride, module.dilation, module.groups, module.padding_mode
    inside = module.padding if mode == "zeros" else 0
    around = [size for size in reversed(module.padding) for _ in range(2)]

    def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if mode != "zeros":
            x = functional.pad(x, around, mode=mode)
        return kinds[weight.dim() - 3](x, weight, bias, stride, inside, dilation, groups)

    return compute


def transposed_convolution(module: Any) -> Compute:
    """Return what a transposed convolution of torch computes."""
    kinds = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    given = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)

    def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return kinds[weight.dim() - 3](x, weight, bias, *given)

    return compute


def batch_norm(module: Any) -> nn.Module:
    """Return the float batch norm of a quantized one."""
    kind = nn.BatchNorm3d if "3d" in type(module).__name__ else nn.BatchNorm2d
    inner = kind(module.num_features, eps=module.eps)
    inner.load_state_dict({name: value for name, value in module.state_dict().items() if name not in _NUMBERS})
    return inner.eval()


def embedding(module: Any) -> nn.Module:
    """Return an embedding with float weights."""
    weight = module.weight().dequantize()
    return nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)


def float_base(base: type[nn.Module], module: nn.Module) -> nn.Module:
    """Return a module of class `base` with the attributes of `module`, whose class is derived from it."""
    inner = base.__new__(base)
    inner.__dict__.update({name: value for name, value in vars(module).items() if name not in _NUMBERS})
    inner._buffers = {name: value for name, value in module._buffers.items() if name not in _NUMBERS}
    return inner


class _Weight(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            scales, points = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
            self.axis = weight.q_per_channel_axis()
        else:
            rows = weight.shape[0]
            scales, points = (torch.tensor(each).expand(rows) for each in (weight.q_scale(), weight.q_zero_point()))
            self.axis = 0
        self.integers: torch.Tensor
        self.register_buffer("integers", weight.int_repr())
        self.register_buffer("scales", scales.float().contiguous())
        self.register_buffer("zero_points", points.long().contiguous() if bool(points.any()) else None)

    def forward(self) -> torch.Tensor:
        """Return it dequantized."""
        dtype = self.integers.dtype
        limits = torch.iinfo(dtype)
        given = (self.integers, self.scales, self.zero_points, self.axis, limits.min, limits.max, dtype)
        result: torch.Tensor = find_operator("quantized_decomposed.dequantize_per_channel")(*given)
        return result


def _over_its_range(x: torch.Tensor) -> torch.Tensor:
    """Put x through the uint8 pair over the range of each call."""
    operators = ("choose_qparams.tensor", "quantize_per_tensor.tensor", "dequantize_per_tensor.tensor")
    choose, quantize, dequantize = (find_operator(f"quantized_decomposed.{name}") for name in operators)
    scale, zero_point = choose(x, 0, 255, _EPS, torch.uint8)
    numbers = (scale, zero_point, 0, 255, torch.uint8)
    result: torch.Tensor = dequantize(quantize(x, *numbers), *numbers)
    return result


def _result_numbers(module: Any) -> Numbers:
    # Results are quint8 in all of torch's kernels for modules.
    return float(module.scale), int(module.zero_point), torch.uint8


def _bias(module: Any) -> torch.Tensor | None:
    bias = module.bias()
    return None if bias is None else bias.detach().float()
