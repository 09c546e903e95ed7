"""equalize: the same float function on random chains, level ranges, and planted unequal ones that int8 survives."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.numerics import drift
from burnish.compiler.pipeline import run_pipeline

_BETWEEN: list[Any] = [
    nn.Identity,
    nn.ReLU,
    lambda: nn.LeakyReLU(0.3),
    lambda: nn.MaxPool2d(2),
    lambda: nn.AvgPool2d(2),
]


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions, grouped, depthwise and transposed among them, with activations and pools; rows of all sizes."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    width = 4
    for _ in range(draw(st.integers(2, 4))):
        out = draw(st.sampled_from([4, 8]))
        kind = draw(st.sampled_from(["plain", "grouped", "depthwise", "transposed"]))
        bias = draw(st.booleans())
        if kind == "depthwise":
            layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias))
            out = width
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(width, out, 2, stride=2, groups=2, bias=bias))
        else:
            layers.append(nn.Conv2d(width, out, 3, padding=1, groups=1 if kind == "plain" else 2, bias=bias))
        with torch.no_grad():
            weight: Any = layers[-1].weight
            weight *= 10 ** (torch.rand(len(weight))[:, None, None, None] * 4 - 2)
        layers.append(draw(st.sampled_from(_BETWEEN))())
        width = out
    return nn.Sequential(*layers).eval()


def _run(passes: str, program: Program, data: torch.Tensor) -> Program:
    return run_pipeline(Pipeline.parse(passes), program, Context(calibration=[data]), verify=3)[0]


@settings(max_examples=12, deadline=None)
@given(chains(), st.booleans())
def test_the_same_function(model: nn.Sequential, fused: bool) -> None:
    x = torch.randn(2, 4, 16, 16)
    before = _run(f"canonicalize{',fuse' if fused else ''}", burnish.capture(model, (x,)), x)
    after, records = run_pipeline(Pipeline.parse("equalize,equalize"), before, Context(), verify=3)
    assert [skip.reason.partition(":")[0] for skip in records[0].skips] == ["%input is an input or a constant"]
    # One run settles every pair; where all of them were level before, it leaves them.
    assert not records[1].changed
    assert drift(after(x), before(x)) < 1e-6


def _weights(program: Program) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (program.constants[str(node.args[1].target)] for node in program.graphs["main"].nodes
                     if "conv2d" in str(node.target))  # fmt: skip
    return first, second


def _ranges(program: Program) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = _weights(program)
    return first.abs().amax((1, 2, 3)), second.abs().amax((0, 2, 3))


def test_ranges_are_level() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight *= torch.logspace(-2, 2, 6).reshape(-1, 1, 1, 1)
    x = torch.randn(2, 4, 8, 8)
    before = _run("canonicalize", burnish.capture(model, (x,)), x)
    rows, columns = _ranges(_run("equalize", before, x))
    assert bool(((rows / columns).log2().abs() <= 1).all())
    first, second = _ranges(before)
    assert float((first / second).log2().abs().max()) > 6
    torch.testing.assert_close(rows * columns, first * second, rtol=1e-6, atol=0)


def test_dead_channels_stay() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0.0, 0.0
        model[2].weight[:, 3] = 1e-9
    x = torch.randn(2, 4, 8, 8)
    program = _run("canonicalize,equalize", burnish.capture(model, (x,)), x)
    first, second = _weights(program)
    assert torch.equal(first[:2], model[0].weight[:2]) and torch.equal(second[:, 3], model[2].weight[:, 3])
    assert torch.equal(first[3], model[0].weight[3])


def test_planted_ranges() -> None:
    """Rows of very different sizes in a layer with one scale for the whole weight, undone by the next layer."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    with torch.no_grad():
        sizes = torch.logspace(-2, 2, 16)
        model[0].weight *= sizes.reshape(-1, 1, 1, 1)
        model[0].bias *= sizes
        model[2].weight /= sizes.reshape(1, -1, 1, 1)
    x = torch.randn(4, 16, 12, 12)
    program = burnish.capture(model, (x,))
    with torch.no_grad():
        expected = model(x)

    def error(passes: str) -> float:
        return float((_run(f"canonicalize,{passes}", program, x)(x) - expected).norm() / expected.norm())

    plain = error("quantize{granularity=tensor}")
    assert plain > 4 * error("equalize,quantize{granularity=tensor}")
    assert plain > 4 * error("quantize{granularity=tensor,preset=accurate}")
