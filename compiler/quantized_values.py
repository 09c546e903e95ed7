"""Float tensors that stand for quantized ones while a model quantized in eager PyTorch is traced.

Such a tensor carries the scale, zero point and dtype that torch's tensor would have. What torch computes on it gives
such tensors again, as torch's kernels for quantized tensors do: pools and `cat` round to the numbers of their (first)
input, `sigmoid` and `tanh` to fixed ones, and what only moves elements or limits them has nothing to round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from burnish.compiler.operators import find_operator

__all__ = ["INTEGERS", "Numbers", "QuantizedValues", "dequantized", "marked", "numbers_of", "rounded"]

Numbers = tuple[float, int, torch.dtype]
"""Scale, zero point, and dtype of the integers."""

INTEGERS = {torch.quint8: torch.uint8, torch.qint8: torch.int8}
"""The integers inside torch's quantized dtypes."""

_MARK = "_burnish_numbers"
_FIXED: dict[str, tuple[float, int]] = {"sigmoid": (1 / 256, 0), "hardsigmoid": (1 / 256, 0), "tanh": (2 / 256, 128)}
_NOTHING_TO_ROUND = frozenset(
    {"__getitem__", "chunk", "clamp", "clone", "contiguous", "dropout", "expand", "flatten", "hardtanh", "max_pool1d",
     "max_pool2d", "max_pool3d", "narrow", "permute", "pixel_shuffle", "pixel_unshuffle", "relu", "relu_", "reshape",
     "select", "split", "squeeze", "transpose", "unbind", "unflatten", "unsqueeze", "view"}
)  # fmt: skip


class QuantizedValues(TorchFunctionMode):
    """While it is on, results of what reads a marked tensor are rounded and marked as torch's would be."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func` on tensors of which some may be marked."""
        name, given = getattr(func, "__name__", ""), kwargs or {}
        # An operator that is called by itself is one of ours.
        numbers = None if isinstance(func, OpOverload) else numbers_of((args, given))
        if numbers is not None and name == "dequantize":
            return dequantized(args[0])
        result = func(*args, **given)
        if numbers is None:
            return result
        if name in _FIXED:
            numbers = (*_FIXED[name], torch.uint8)
        finish = marked if name in _NOTHING_TO_ROUND else rounded
        if isinstance(result, (tuple, list)):
            return type(result)([finish(each, numbers) for each in result])
        return finish(result, numbers)


def rounded(value: Any, numbers: Numbers) -> Any:
    """Put a float32 tensor through quantize and dequantize, and mark it; return anything else as it is."""
    if not _is_float(value):
        return value
    scale, zero_point, dtype = numbers
    limits = torch.iinfo(dtype)
    given = (scale, zero_point, limits.min, limits.max, dtype)
    integers = find_operator("quantized_decomposed.quantize_per_tensor")(value, *given)
    return marked(find_operator("quantized_decomposed.dequantize_per_tensor")(integers, *given), numbers)


def marked(value: Any, numbers: Numbers) -> Any:
    """Mark a float32 tensor that `numbers` can hold as it is; return anything else as it is."""
    if _is_float(value):
        setattr(value, _MARK, numbers)
    return value


def dequantized(value: torch.Tensor) -> torch.Tensor:
    """Return the same values without a mark: another tensor, as others go on reading the quantized one."""
    result: torch.Tensor = torch.ops.aten.alias.default(value)
    return result


def numbers_of(values: Any) -> Numbers | None:
    """Return the numbers of the first marked tensor in a pytree."""
    for each in torch.utils._pytree.tree_leaves(values):
        found: Numbers | None = getattr(each, _MARK, None) if isinstance(each, torch.Tensor) else None
        if found is not None:
            return found
    return None


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
