"""Convolutions are channels-last in the file too, and nobody else sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from burnish.backends.torchscript import TorchScriptBackend
from burnish.backends.torchscript.layout import plan_layout
from burnish.compiler.capture import capture
from burnish.compiler.numerics import worst_drift
from burnish.compiler.program import Program

BACKEND = TorchScriptBackend()


class Around(nn.Module):
    """`function` of a convolution's result, which has 4 channels and 6 x 6 pixels."""

    def __init__(self, function: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm, self.layer_norm, self.pixels = nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.PixelShuffle(2)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, self.conv(x))


FUNCTIONS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "output": lambda m, y: y,
    "view": lambda m, y: y.view(y.shape[0], -1),
    "view of channels": lambda m, y: y.view(y.shape[0], 2, 2, 36) * 2,
    "view of a slice": lambda m, y: y[:, 1:3].relu().view(y.shape[0], -1),
    "view of a pool": lambda m, y: nn.functional.max_pool2d(y, 2).view(y.shape[0], -1),
    "view of a sum": lambda m, y: (y + y.mean((2, 3), keepdim=True)).clamp(0, 1).view(y.shape[0], -1),
    "cat": lambda m, y: torch.cat([y, y.sigmoid()], 1).view(y.shape[0], -1),
    "cat with a constant": lambda m, y: torch.cat([y, torch.ones_like(y)], 1).flatten(1),
    "split": lambda m, y: torch.cat([each.flatten(1) for each in y.split(2, 1)], 1),
    "chunk": lambda m, y: y.chunk(2, 1)[1].tanh().view(y.shape[0], -1),
    "norm": lambda m, y: m.norm(y).view(y.shape[0], -1),
    "tokens": lambda m, y: m.layer_norm(y.flatten(2).transpose(1, 2)),
    "tokens and back": lambda m, y: m.layer_norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + y,
    "view of tokens": lambda m, y: y.permute(0, 2, 3, 1).view(y.shape[0], 36, 4),
    "shuffle": lambda m, y: m.pixels(y),
    "transposed convolution": lambda m, y: m.up(y).view(y.shape[0], -1),
    "resize": lambda m, y: nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear").view(y.shape[0], -1),
    "pad": lambda m, y: nn.functional.pad(y, (1, 2, 3, 0), mode="reflect").view(y.shape[0], -1),
    "shape": lambda m, y: torch.zeros(y.shape[0], y.shape[1]) + y.amax((2, 3)),
    "as_strided": lambda m, y: y.as_strided((3, 3), (1, 5)) * 1,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_readers_of_a_convolution(name: str) -> None:
    torch.manual_seed(0)
    model = Around(FUNCTIONS[name]).eval()
    artifact = BACKEND.emit(capture(model, (torch.randn(2, 3, 8, 8),)), {})
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            expected = model(x)
        for call in (artifact, artifact.module, artifact, artifact.module):
            actual = call(x)
            assert worst_drift([actual], [expected]) <= 1e-6
            assert actual.is_contiguous() or name == "as_strided"


def planned(body: str, results: str) -> tuple[set[str], list[str]]:
    """Return the weights that are channels-last, and the names of the results that may be."""
    program = Program.parse(
        f"""# burnish 1
constant @w: f32[4, 3, 3, 3]
constant @s: f32[3, 3, 3, 3]
constant @d: f64[4, 3, 3, 3]
constant @h: bf16[4, 3, 3, 3]
graph main(%x: f32[B, 3, 8, 8], %y: f64[B, 3, 8, 8], %one: f32[3, 8, 8], %z: bf16[B, 3, 8, 8]) {{
{body}
  return {results}
}}
"""
    )
    layout = plan_layout(program)
    return set(layout.weights), sorted(node.name for node in layout.results)


def test_casts_keep_the_layout() -> None:
    cast = "  %a = aten.conv2d(%z, @h)\n  %b = aten.to.dtype(%a, dtype=f32)\n  %c = aten.relu(%b)"
    assert planned(cast, "%c") == ({"h"}, ["a", "b", "c"])


def test_float_convolutions_of_batches_are_chosen() -> None:
    assert planned("  %a = aten.conv2d(%x, @w)\n  %b = aten.relu(%a)\n  %c = aten.softmax.int(%b, 1)", "%c") == (
        {"w"},
        ["a", "b"],
    )
    assert planned("  %a = aten.conv2d(%y, @d)", "%a") == (set(), [])
    assert planned("  %a = aten.conv2d(%one, @w)", "%a") == (set(), [])


def test_weights_with_other_readers_stay() -> None:
    both = "  %a = aten.conv2d(%x, @w)\n  %b = aten.view(@w, [-1])"
    assert planned(both, "%a, %b") == (set(), [])
    twice = "  %a = aten.conv2d(%x, @s)\n  %b = aten.conv2d(%a, @s)"
    assert planned(twice, "%b") == ({"s"}, ["a", "b"])
    itself = "  %a = aten.conv2d(@s, @s)"
    assert planned(itself, "%a") == (set(), [])


def test_a_chain_of_convolutions_is_not_reordered() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Flatten())
    artifact = BACKEND.emit(capture(model.eval(), (torch.randn(2, 3, 9, 9),)), {})
    kinds = [node.kind() for node in artifact.module.graph.nodes()]
    assert kinds.count("aten::contiguous") == 1
