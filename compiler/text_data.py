"""Seeded random data for what a text does not hold: the values of constants, and sample inputs.

The value of a constant depends on the seed and its name alone, so that editing one line changes one constant.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch

from burnish.compiler.errors import BurnishError

__all__ = ["random_constant", "random_sample", "small_constant"]


def random_constant(name: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return a weight: floats uniform with variance 1 / fan-in, a running variance in 0.5..1.5, integers 0 or 1."""
    generator = _generator(f"constant {name}", seed)
    if not (dtype.is_floating_point or dtype.is_complex):
        return _whole(dtype, shape, generator)
    if name.endswith("var"):
        return (torch.rand(shape, generator=generator) + 0.5).to(dtype)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 3
    scale = math.sqrt(3 / max(1, fan_in))
    return ((torch.rand(shape, generator=generator) * 2 - 1) * scale).to(dtype)


def random_sample(name: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return an input: floats normal, integers 0 or 1."""
    generator = _generator(f"sample {name}", seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return _whole(dtype, shape, generator)


def small_constant(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor that a literal (a number, or nested lists of them) stands for.

    Raises:
        BurnishError: the literal has another shape, or does not fit the dtype.
    """
    try:
        tensor = torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BurnishError(f"this value is not a {dtype} tensor: {error}") from error
    if tuple(tensor.shape) != shape:
        raise BurnishError(f"this value has shape {list(tensor.shape)}, but the type says {list(shape)}")
    return tensor


def _whole(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    # Nothing above 1: integers are mostly indices, and a table may have two rows.
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _generator(key: str, seed: int) -> torch.Generator:
    # CRC rather than hash(): the same in every process.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {key}".encode(errors="backslashreplace")))
