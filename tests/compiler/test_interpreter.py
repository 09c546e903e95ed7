"""Running a Program in eager PyTorch: buffers, aliases, branches."""

from __future__ import annotations

import pytest
import torch

import burnish


class Swap(torch.nn.Module):
    """Two buffers that take each other's old values: Fibonacci."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor([0.0]))
        self.register_buffer("b", torch.tensor([1.0]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        old = self.b.clone()
        self.b.copy_(self.a + self.b)
        self.a.copy_(old)
        return x + self.a, old


@pytest.mark.parametrize("how", ["eager", "onnx", "torchscript"])
def test_buffers_that_take_each_others_old_values(how: str) -> None:
    model = Swap()
    x = torch.zeros(2, 1)
    compiled = burnish.capture(model, (x,)) if how == "eager" else burnish.compile(model, inputs=(x,), backend=how)
    for _ in range(8):
        for actual, expected in zip(compiled(x), model(x), strict=True):
            assert torch.equal(actual, expected)


def test_a_result_that_is_a_buffer_is_not_written_later() -> None:
    class Count(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n += 1
            return self.n

    program = burnish.capture(Count(), (torch.zeros(1),))
    first = program(torch.zeros(1))
    second = program(torch.zeros(1))
    assert (float(first), float(second)) == (1.0, 2.0)
    first.fill_(100.0)
    assert float(program(torch.zeros(1))) == 3.0
