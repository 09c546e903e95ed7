"""What the tests of the command share: the source of a few models, a program as text, the type of a runner."""

from __future__ import annotations

from collections.abc import Callable

from typer.testing import Result

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.bn.running_var.fill_(2.0)

    def forward(self, x):
        return {"pooled": self.bn(self.conv(x)).mean((2, 3)), "features": torch.relu(x)}


class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 4)

    def forward(self, ids, scale):
        return self.table(ids) * scale


instance = Net()


def with_inputs():
    return Net(), (torch.randn(2, 3, 8, 8),)


def raising():
    raise ValueError("no weights here")


def number():
    return 3
"""

TEXT = """# burnish 1
graph main(%x: f32[4]) {
  %a = aten.relu(%x) : f32[4]
  %b = aten.relu(%x) : f32[4]
  %c = aten.add.Tensor(%a, %b) : f32[4]
  return %c
}
"""

Command = Callable[..., Result]
