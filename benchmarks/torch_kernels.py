"""Which of PyTorch's CPU kernels is the fastest for a pattern: what burnish's TorchScript lowering chooses by.

python -m benchmarks.torch_kernels [--filter norm] [--blocks 9]

Candidates take turns on 2 threads. Printed: time per call, and the ratio to the first candidate of the group with half
the distance between its quartiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from benchmarks.timing import interleave

THREADS = 2
_PACK = torch.ops.mkldnn._reorder_convolution_weight
_CONVOLUTION = torch.ops.mkldnn._convolution_pointwise
_LINEAR = torch.ops.mkldnn._linear_pointwise
Group = tuple[str, dict[str, Callable[[], object]]]
"""A pattern at a size, and the candidates."""


def convolution(dtype: torch.dtype, channels: int, made: int, size: int, kernel: int, stride: int, batch: int) -> Group:
    """A convolution of pictures in channels-last, its weight packed for them, for those of half the size, or not."""
    x = torch.randn(batch, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(made, channels, kernel, kernel, dtype=dtype).contiguous(memory_format=torch.channels_last)
    geometry = ([kernel // 2 if kernel % 2 else 0] * 2, [stride] * 2, [1, 1])
    sizes = {
        "packed for its size": list(x.shape),
        "packed for another batch": [batch + 7, *x.shape[1:]],
        "packed for half the size": [*x.shape[:2], size // 2, size // 2],
        "packed for none": None,
    }
    packed = {name: _PACK(weight, *geometry, 1, each) for name, each in sizes.items()}
    candidates: dict[str, Callable[[], object]] = {
        name: lambda each=each: _CONVOLUTION(x, each, None, *geometry, 1, "none", [], "")
        for name, each in packed.items()
    }
    candidates["ATen"] = lambda: torch.conv2d(x, weight, None, geometry[1], geometry[0])
    kind = str(dtype).removeprefix("torch.")
    return f"convolution, {kind} [{batch}, {channels}, {size}, {size}] to {made} by {kernel}, step {stride}", candidates


def activation(rows: int, width: int) -> Group:
    """A linear layer in bfloat16 and its gelu."""
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(4 * width, width).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return f"gelu behind a layer, bfloat16 [{rows}, {width}]", {
        "in the kernel": lambda: _LINEAR(x, packed, None, "gelu", [], "none"),
        "in place": lambda: torch.ops.aten.gelu_(_LINEAR(x, packed, None, "none", [], "")),
        "ATen": lambda: functional.gelu(functional.linear(x, weight)),
    }


def layer_norm(rows: int, width: int) -> Group:
    """A layer norm of bfloat16, on it or between casts."""
    x, scale, shift = torch.randn(rows, width).bfloat16(), torch.randn(width), torch.randn(width)
    return f"layer norm, bfloat16 [{rows}, {width}]", {
        "on bfloat16": lambda: functional.layer_norm(x, (width,), scale, shift),
        "between casts": lambda: functional.layer_norm(x.float(), (width,), scale, shift).bfloat16(),
    }


def group_norm(batch: int, channels: int, size: int) -> Group:
    """A group norm of bfloat16 in channels-last, on it or between casts."""
    x = torch.randn(batch, channels, size, size).bfloat16().contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(channels), torch.randn(channels)
    return f"group norm, bfloat16 [{batch}, {channels}, {size}, {size}]", {
        "on bfloat16": lambda: functional.group_norm(x, 8, scale, shift),
        "between casts": lambda: functional.group_norm(x.float(), 8, scale, shift).bfloat16(),
    }


def groups() -> Iterator[Group]:
    """Yield every pattern at every size."""
    for dtype in (torch.float32, torch.bfloat16):
        yield convolution(dtype, 3, 96, 224, 4, 4, 1)
        yield convolution(dtype, 96, 192, 56, 2, 2, 1)
        yield convolution(dtype, 192, 384, 28, 2, 2, 1)
        yield convolution(dtype, 192, 384, 28, 2, 2, 8)
        yield convolution(dtype, 3, 768, 224, 16, 16, 1)
        yield convolution(dtype, 64, 64, 56, 3, 1, 1)
        yield convolution(dtype, 512, 2048, 10, 1, 1, 1)
    for rows, width in ((196, 384), (1568, 384), (3136, 96)):
        yield activation(rows, width)
        yield layer_norm(rows, width)
    yield layer_norm(25088, 96)
    yield group_norm(1, 64, 28)
    yield group_norm(4, 32, 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only patterns whose name contains this")
    parser.add_argument("--blocks", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    for name, candidates in groups():
        if chosen.filter in name:
            print(name)
            for each, found in interleave(candidates, blocks=chosen.blocks).items():
                print(f"    {each:26}{found.median * 1e6:9.0f} us   {found.ratio:.3f} +- {found.spread:.3f}")


if __name__ == "__main__":
    main()
