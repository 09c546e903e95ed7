"""cse on equal constants that only data can tell apart; tests/golden/cse has the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import burnish
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline


class Branches(nn.Module):
    """The same product with each of several tables."""

    def __init__(self, tables: list[Tensor]) -> None:
        super().__init__()
        for index, table in enumerate(tables):
            self.register_buffer(f"table{index}", table)
        self.count = len(tables)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x * self.get_buffer(f"table{index}") for index in range(self.count)]


def products_left(tables: list[Tensor]) -> int:
    program = burnish.capture(Branches(tables), (torch.randn(2, *tables[0].shape),))
    merged, _ = run_pipeline(Pipeline.parse("cse"), program, Context(), verify=4)
    return merged.node_count()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.int64])
@pytest.mark.parametrize("place", [0, 1, 37, 99])
def test_one_element_tells_constants_apart(dtype: torch.dtype, place: int) -> None:
    table = torch.zeros(100, dtype=dtype)
    other = table.clone()
    other[place] = 1
    assert products_left([table, table.clone()]) == 1
    assert products_left([table, other]) == 2


def test_strides_tell_constants_apart() -> None:
    table = torch.randn(16, 16)
    assert products_left([table, table.t().contiguous().t()]) == 2
    assert products_left([table.t(), table.clone().t()]) == 1


def test_many_constants_alike() -> None:
    """Thirty constants that agree wherever samples are taken, each of them twice."""
    tables = [
        torch.zeros(100).index_fill(0, torch.tensor(50 + index // 3 % 3), float(index + 1)) for index in range(30)
    ]
    left = products_left([*tables, *(table.clone() for table in tables)])
    assert 30 <= left < 60
