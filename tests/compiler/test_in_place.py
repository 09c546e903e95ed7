"""In-place operators become functional, whichever way is taken, and mean the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import burnish
from burnish.compiler.in_place import functional_twins
from burnish.compiler.operators import is_mutating


def plain(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).relu_() + 1


def chain(x: torch.Tensor) -> torch.Tensor:
    y = x - 1
    z = y.relu_().mul_(3).add_(x)
    return y + z * 10  # y was written to three times


def used_before(x: torch.Tensor) -> torch.Tensor:
    y = x - 1
    before = y + 5
    y.sigmoid_()
    return before * y


def of_a_view(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 0].relu_()
    return y


def then_viewed(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    view = y.reshape(-1)
    y.relu_()
    return view


def of_the_input(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    x.add_(1)
    return x + y


def through_dropout(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    z = torch.nn.functional.dropout(y, 0.5, training=False)
    z.relu_()
    return y + z


def promoted(x: torch.Tensor) -> torch.Tensor:
    y = (x * 2).half()
    return y.add_(x).float()


def copied_into(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y.copy_(x * 2)
    return y


class Wrap(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "is_simple"),
    [
        (plain, True),
        (chain, True),
        (used_before, True),
        (of_a_view, False),
        (then_viewed, False),
        (of_the_input, False),
        (through_dropout, False),
        (promoted, False),
        (copied_into, False),
    ],
)
def test_in_place_operators_mean_the_same(function: Callable[[torch.Tensor], torch.Tensor], is_simple: bool) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(Wrap(function), (x,))
    assert (functional_twins(exported) is not None) is is_simple
    program = burnish.capture(Wrap(function), (x,))
    assert not any(is_mutating(node.target) for node in program.graphs["main"].nodes if node.op == "call_function")
    assert torch.equal(program(x.clone()), function(x.clone()))
