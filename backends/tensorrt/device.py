"""The GPUs and streams that engines run on: all that this backend asks of CUDA, through PyTorch."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

__all__ = ["capability", "count", "name", "place", "stream", "synchronize", "use"]


def count() -> int:
    """Return how many GPUs PyTorch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def name(index: int) -> str:
    """Return the name of a GPU, "NVIDIA H200"."""
    return str(torch.cuda.get_device_properties(index).name)


def capability(index: int) -> tuple[int, int]:
    """Return the compute capability of a GPU, (9, 0)."""
    return torch.cuda.get_device_capability(index)


def place(index: int) -> torch.device:
    """Return where tensors of a GPU are."""
    return torch.device("cuda", index)


def use(index: int) -> AbstractContextManager[object]:
    """Make a GPU the current one, within a `with`."""
    return torch.cuda.device(index)


def stream(index: int) -> int:
    """Return the handle of the caller's current stream on a GPU."""
    return int(torch.cuda.current_stream(index).cuda_stream)


def synchronize(index: int) -> None:
    """Wait until a GPU has done all that it was given."""
    torch.cuda.synchronize(index)
