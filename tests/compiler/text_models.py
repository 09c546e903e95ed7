"""Models that the tests of the text form and of storage capture."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from burnish.compiler.capture import capture
from burnish.compiler.program import Program

SMALL = """# burnish 1
constant @w: f32[4, 3]
graph main(%x: f32[B, 3]) {
  %y = aten.linear(%x, @w) : f32[B, 4]
  %z = aten.relu(%y) : f32[B, 4]
  return %z
}
"""


class Net(nn.Module):
    """A convolution with batch norm, a residual and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head((x + x.sigmoid()).mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM with a batch-first input."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.lstm(x)


class Conditional(nn.Module):
    """Data-dependent control flow."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda y: y.sin() + 1, lambda y: y.cos(), (x,))


class DataDependent(nn.Module):
    """Sizes that depend on data, twice on the same."""

    def forward(self, x: torch.Tensor) -> Any:
        rows = torch.nonzero(x[:, 0] > 0).squeeze(1)
        other = torch.nonzero(x[:, 1] > 0).squeeze(1)
        return x.index_select(0, rows) * 2, x[other].sum(0), torch.nonzero(x[:, 0] > 0)


class Updating(nn.Module):
    """A buffer that forward updates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        self.mean.copy_(0.9 * self.mean + 0.1 * x.mean(0))
        return x - self.mean


class Containers(nn.Module):
    """Keyword inputs, None among the inputs and outputs, nested containers, literals, odd names."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a b": nn.Linear(3, 3)})

    def forward(self, pair: Any, *, scale: torch.Tensor, mask: Any = None, mode: str = "x") -> dict[str, Any]:
        y = self.parts["a b"](pair[0]) * scale + pair[1]["z"]
        tiled = torch.cat([y, y]).reshape(-1, 1)
        return {"y": y, "none": None, "rest": [tiled, (y.shape[0], 2.5, True)], "inf": y.masked_fill(y > 0, -torch.inf)}


def _language_model(kind: str) -> nn.Module:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    common: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    common |= {"intermediate_size": 24, "max_position_embeddings": 16}
    torch.manual_seed(0)
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**common))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, use_cache=False))


def _inputs() -> dict[str, tuple[Callable[[], nn.Module], Any]]:
    tokens = torch.randint(0, 32, (2, 8))
    table = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    containers = {"pair": (torch.randn(3, 3), {"z": torch.randn(3, 3)}), "scale": torch.randn(3), "mask": None}
    return {
        "net": (Net, (torch.randn(2, 3, 8, 8),)),
        "recurrent": (Recurrent, (torch.randn(2, 6, 4),)),
        "conditional": (Conditional, (torch.randn(2, 3),)),
        "data-dependent": (DataDependent, (torch.randn(5, 3),)),
        "updating": (Updating, (torch.randn(2, 4),)),
        "containers": (Containers, {**containers, "mode": "x"}),
        "bert": (lambda: _language_model("bert"), table),
        "llama": (lambda: _language_model("llama"), table),
    }


NAMES = ("net", "recurrent", "conditional", "data-dependent", "updating", "containers", "bert", "llama")


@functools.cache
def captured(name: str) -> Program:
    """Return the Program of the model called `name`; do not edit it."""
    torch.manual_seed(0)
    make, inputs = _inputs()[name]
    return capture(make(), inputs)


def leaves(value: Any) -> list[Any]:
    """Return the leaves of a pytree that are not None."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if leaf is not None]
