"""A `cond` within a branch of another: captured, written, costed, lowered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import burnish
from burnish import Program
from burnish.compiler.errors import TextError
from burnish.compiler.verify import verify


class _Nested(nn.Module):
    """Weights in the innermost branch; both inner branches have the names that torch.export gives the outer ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def inner(self, y: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor]:
        (found,) = torch.cond(p.sum() > 1, lambda z: (z * 2,), lambda z: (self.last(z),), (y,))
        return (found + 1,)

    def forward(self, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        (found,) = torch.cond(p.sum() > 0, lambda y: (y.clone(),), lambda y: self.inner(y, -p), (self.first(x),))
        return found


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return _Nested().eval()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return burnish.capture(model, (torch.randn(3, 4), torch.ones(1)))


def test_text_and_file(program: Program, tmp_path: Path) -> None:
    assert len(program.branches) == 4
    verify(program)
    text = program.print()
    assert Program.parse(text, program.constants).print() == text
    program.save(tmp_path / "nested.burnish")
    assert Program.load(tmp_path / "nested.burnish").print() == text


def test_the_larger_of_all_ways_counts(program: Program) -> None:
    # Two linear layers, 2 * 3 * 16 + 12 each; the sums and comparisons of a predicate and - p; 12 additions.
    assert program.cost().at_samples().flops == 2 * 108 + 3 + 2 + 12


@pytest.mark.parametrize("backend", ["onnx", "torchscript"])
def test_every_way_on_every_backend(model: nn.Module, program: Program, backend: str) -> None:
    compiled = burnish.compile(program.copy(), backend=backend, progress=False)
    x = torch.randn(5, 4)
    for value in (1.0, -0.5, -2.0):
        given = (x, torch.full((1,), value))
        with torch.no_grad():
            expected = model(*given)
        torch.testing.assert_close(program(*given), expected)
        torch.testing.assert_close(compiled(*given), expected)


def test_a_branch_within_itself_is_refused() -> None:
    text = """# burnish 1
graph main(%x: f32[4], %p: b1[]) {
  %cond = higher_order.cond(%p, &one, &one, (%x, %p)) : (f32[4],)
  %y = getitem(%cond, 0) : f32[4]
  return %y
}
branch one(%x: f32[4], %p: b1[]) {
  %cond = higher_order.cond(%p, &one, &one, (%x, %p)) : (f32[4],)
  %y = getitem(%cond, 0) : f32[4]
  return %y
}
"""
    with pytest.raises(TextError, match="branch &one refers to itself"):
        Program.parse(text)


def test_branches_nested_too_deep_are_refused() -> None:
    body = """(%x: f32[4], %p: b1[]) {{
  %cond = higher_order.cond(%p, &b{0}, &b{0}, (%x, %p)) : (f32[4],)
  %y = getitem(%cond, 0) : f32[4]
  return %y
}}"""
    graphs = [f"graph main{body.format(0)}", *(f"branch b{index}{body.format(index + 1)}" for index in range(500))]
    with pytest.raises(TextError, match="branches are nested more than 30 deep"):
        Program.parse("\n".join(["# burnish 1", *graphs, ""]))
