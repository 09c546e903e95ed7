"""Models that prune got wrong, or stumbled over: each against the oracle, plain and fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import burnish
from burnish import Context, Pipeline, Program
from tests.pruning_oracle import pruned


class _Function(nn.Module):
    """A function of (module, input) with submodules."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class _Memory(nn.Module):
    """Attention over learned tokens, or with learned queries."""

    def __init__(self, learned: str) -> None:
        super().__init__()
        self.learned = learned
        self.memory = nn.Parameter(torch.randn(12, 32))
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.memory.expand(x.shape[0], -1, -1)
        query, read = (memory, x) if self.learned == "queries" else (x, memory)
        parts = [
            layer(each).unflatten(-1, (4, 8)).transpose(1, 2)
            for layer, each in ((self.q, query), (self.k, read), (self.v, read))
        ]
        return self.o(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class _Chosen(nn.Module):
    """One tensor of booleans stands for two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("chosen", torch.tensor([[True, False, True], [True, True, False]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)[:, self.chosen].sigmoid())


def _linear(*sizes: int) -> dict[str, nn.Module]:
    return {
        name: nn.Linear(*pair) for name, pair in zip("abc", zip(sizes[::2], sizes[1::2], strict=True), strict=False)
    }


_PICTURE, _ROWS = (2, 3, 4, 4), (2, 6, 8)
_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shuffle behind a group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.ChannelShuffle(4), nn.Conv2d(16, 4, 1)),
        _PICTURE,
    ),
    "shuffle before groups": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 32, 1), nn.ChannelShuffle(4), nn.Sigmoid(), nn.Conv2d(32, 32, 1, groups=4), nn.Conv2d(32, 4, 1)
        ),
        _PICTURE,
    ),
    "shuffle of three": (
        lambda: nn.Sequential(nn.Conv2d(3, 24, 1), nn.ChannelShuffle(3), nn.Conv2d(24, 4, 1)),
        _PICTURE,
    ),
    "learned memory": (lambda: _Memory("memory"), (2, 5, 32)),
    "learned queries": (lambda: _Memory("queries"), (2, 5, 32)),
    "learned queries, read by number": (
        lambda: nn.Sequential(_Memory("queries"), nn.Flatten(), nn.Linear(12 * 32, 3)),
        (2, 5, 32),
    ),
    "group norm over positions": (
        lambda: _Function(lambda s, x: s.b(s.n(s.a(x))), n=nn.GroupNorm(2, 6), **_linear(8, 16, 16, 4)),
        _ROWS,
    ),
    "instance norm over positions": (
        lambda: _Function(lambda s, x: s.b(s.n(s.a(x))), n=nn.InstanceNorm1d(6), **_linear(8, 16, 16, 4)),
        _ROWS,
    ),
    "einsum sums one operand": (
        lambda: _Function(lambda s, x: torch.einsum("bth->bt", s.a(x).sigmoid()), **_linear(8, 16)),
        _ROWS,
    ),
    "einsum sums one of two": (
        lambda: _Function(
            lambda s, x: s.b(torch.einsum("bti,bsk->bti", s.a(x), s.c(x).sigmoid())), **_linear(8, 16, 16, 4, 8, 12)
        ),
        _ROWS,
    ),
    "pixels of rows": (
        lambda: nn.Sequential(nn.Linear(8, 32), nn.PixelShuffle(2), nn.Linear(64, 4)),
        (2, 4, 4, 8),
    ),
    "pixels of rows, back": (
        lambda: nn.Sequential(nn.Linear(8, 32), nn.PixelUnshuffle(2), nn.Linear(16, 4)),
        (2, 4, 4, 8),
    ),
    "several results": (
        lambda: _Function(lambda s, x: s.b(torch.frexp(s.a(x))[0]), **_linear(8, 32, 32, 4)),
        _ROWS,
    ),
    "repeated to a size": (
        lambda: _Function(
            lambda s, x: s.b(s.a(x)[..., :16].repeat_interleave(2, -1, output_size=32)), **_linear(8, 32, 32, 4)
        ),
        _ROWS,
    ),
    "chosen by booleans": (_Chosen, (2, 2, 3, 8)),
    "a part of nothing": (
        lambda: _Function(lambda s, x: s.b(s.a(x).split([0, 32], -1)[1]), **_linear(8, 32, 32, 4)),
        _ROWS,
    ),
    "parts, one of nothing": (
        lambda: _Function(
            lambda s, x: s.b(torch.cat([t.sigmoid() for t in s.a(x).split([16, 0], -1)], -1)), **_linear(8, 16, 16, 4)
        ),
        _ROWS,
    ),
    "nothing and the whole": (
        lambda: _Function(
            lambda s, x: s.b((lambda h: torch.cat([h[..., 3:3].relu(), h], -1))(s.a(x))), **_linear(8, 16, 16, 4)
        ),
        _ROWS,
    ),
}


@pytest.mark.parametrize("passes", ["canonicalize", "canonicalize,fold-constants,fuse,dce"])
@pytest.mark.parametrize("name", _MODELS)
def test_against_the_oracle(name: str, passes: str) -> None:
    torch.manual_seed(0)
    model, shape = _MODELS[name]
    program = burnish.capture(model().eval(), (torch.randn(shape),))
    program = Pipeline.parse(passes).run(program, Context(progress=False))
    for ratio, seed in ((0.5, 0), (0.4, 1)):
        assert pruned(program, ratio, seed)[1] < 1e-4


def test_a_shuffle_keeps_its_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.ChannelShuffle(4), nn.Conv2d(16, 4, 1)).eval()
    program = Pipeline.parse("canonicalize").run(burnish.capture(model, (torch.randn(_PICTURE),)), Context())
    smaller, _, _ = pruned(program)
    assert smaller.constants["0.weight"].shape[0] == 8
    assert "groups=2" in smaller.print()


def test_a_branch_that_two_conditionals_share() -> None:
    program = Program.parse("""# burnish 1
# facts: canonical
constant @first: f32[16, 8]
constant @last: f32[4, 16]
graph main(%x: f32[B, 8]) {
  %sum = aten.sum(%x) : f32[]
  %gt = aten.gt.Scalar(%sum, other=0) : b1[]
  %h = aten.linear(%x, @first) : f32[B, 16]
  %c = higher_order.cond(%gt, &yes, &no, (%h,)) : (f32[B, 16],)
  %g = getitem(%c, 0) : f32[B, 16]
  %c2 = higher_order.cond(%gt, &yes, &no, (%g,)) : (f32[B, 16],)
  %g2 = getitem(%c2, 0) : f32[B, 16]
  %z = aten.linear(%g2, @last) : f32[B, 4]
  return %z
}
branch yes(%h: f32[B, 16]) {
  %s = aten.slice.Tensor(%h, dim=1, start=8, end=9223372036854775807) : f32[B, 8]
  %s1 = aten.slice.Tensor(%h, dim=1, start=0, end=8) : f32[B, 8]
  %cat = aten.cat([%s, %s1], dim=-1) : f32[B, 16]
  return %cat
}
branch no(%h: f32[B, 16]) {
  %m = aten.mul.Tensor(%h, 0.5) : f32[B, 16]
  return %m
}
""")
    program = program.with_samples((torch.ones(2, 8),), {})
    smaller, drift, _ = pruned(program)
    assert drift < 1e-4 and smaller.constants["first"].shape[0] < 16
