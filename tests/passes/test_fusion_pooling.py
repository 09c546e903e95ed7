"""Average poolings of random sizes: a mean where the only window covers everything, and the same numbers always."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import Program
from tests.fusion_variants import fuse, operators


def _text(call: str, shape: list[int | str], dtype: str = "f32") -> str:
    sizes = ", ".join(map(str, shape))
    return f"# burnish 1\ngraph main(%x: {dtype}[B, {sizes}]) {{\n  %out = aten.{call}\n  return %out\n}}"


@given(st.data(), st.integers(1, 3), st.sampled_from(["f32", "f64"]))
@settings(max_examples=15, deadline=None)
def test_one_window_over_everything(data: st.DataObject, rank: int, dtype: str) -> None:
    sizes = data.draw(st.lists(st.integers(2, 6), min_size=rank, max_size=rank))
    extra = data.draw(st.lists(st.integers(0, 4 if rank < 3 else 0), min_size=rank, max_size=rank))
    kernel = [size + more for size, more in zip(sizes, extra, strict=True)]
    # A window may be larger than the image only where sizes are rounded up, and never in three dimensions.
    more = f", stride={kernel}, ceil_mode={any(extra)}"
    fused = fuse(_text(f"avg_pool{rank}d(%x, kernel_size={kernel}{more})", [2, *sizes], dtype))
    assert operators(fused) == ["aten.mean.dim"]


@given(st.data(), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_any_pooling_keeps_its_numbers(data: st.DataObject, rank: int) -> None:
    draw, numbers = data.draw, st.integers(1, 6)
    size, kernel, stride = draw(st.integers(1, 5)), draw(numbers), draw(numbers)
    padding = draw(st.integers(0, kernel // 2))
    flags = f"ceil_mode={draw(st.booleans())}, count_include_pad={draw(st.booleans())}"
    if rank == 2 and draw(st.booleans()):
        flags += f", divisor_override={draw(st.sampled_from([size * size, 7]))}"
    arguments = f"kernel_size={[kernel] * rank}, stride={[stride] * rank}, padding={[padding] * rank}, {flags}"
    text = _text(f"avg_pool{rank}d(%x, {arguments})", [2, *[size] * rank])
    if size + 2 * padding >= kernel:
        fuse(text)


@given(st.integers(1, 3), st.booleans(), st.sampled_from(["f32", "f64"]))
@settings(max_examples=10, deadline=None)
def test_adaptive_to_one(rank: int, one: bool, dtype: str) -> None:
    output = [1] * rank if one else [2] * rank
    fused = fuse(_text(f"adaptive_avg_pool{rank}d(%x, output_size={output})", [3, *range(4, 4 + rank)], dtype))
    assert operators(fused) == (["aten.mean.dim"] if one else [f"aten.adaptive_avg_pool{rank}d"])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_stays(dtype: str) -> None:
    fused = fuse(_text("avg_pool2d(%x, kernel_size=[3, 5])", [2, 3, 5], dtype), tolerance=0.0)
    assert operators(fused) == ["aten.avg_pool2d"]


def test_adaptive_at_sizes_that_no_sample_had() -> None:
    text = _text("adaptive_avg_pool2d(%x, [1, 1])", [2, "H", "W"])
    program = Program.parse(text)
    fused = fuse(text, batches=())
    x = torch.randn(5, 2, 11, 3)
    torch.testing.assert_close(fused(x=x), program(x=x))
    assert operators(fused) == ["aten.mean.dim"]
