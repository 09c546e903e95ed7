"""Small models that the ONNX tests lower."""

import os
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import nn


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return self.lstm(x)


class Cond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return torch.cond(y.sum() > 0, lambda v: v.sin() + 1, lambda v: v.cos() * 2, (y,)) + x


class EarlyExit(nn.Module):
    """Rows above a threshold go through the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        rows = (y[:, 0] > 0).nonzero().squeeze(1)
        return y.index_copy(0, rows, self.rest(y.index_select(0, rows)))


class Counter(nn.Module):
    """Updates two buffers in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        self.total.add_(x.sum(0))
        return self.linear(x) * self.total + self.count


class Outputs(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Containers(nn.Module):
    """A dict of everything an output can be: None, a number, an input, a constant, one value twice, an alias."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        y = (x * scale).masked_fill(mask, 0)
        return {
            "y": y,
            "none": None,
            "three": 3,
            "rows": x.shape[0],
            "same": x,
            "table": self.table,
            "again": [y, y],
            "reshaped": x.reshape(-1),
            "any": mask.any(1),
            "pair": Outputs(y + 1, y - 1),
        }


class Types(nn.Module):
    def forward(
        self, half: torch.Tensor, brain: torch.Tensor, index: torch.Tensor, flag: torch.Tensor, unused: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (
            half + 1,
            brain.float() * 2,
            half.to(torch.bfloat16),
            index + 1,
            ~flag,
            torch.where(flag, half, half.neg()),
        )


def types_inputs() -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(2, 3, dtype=torch.float16),
        torch.randn(2, 3, dtype=torch.bfloat16),
        torch.arange(6).reshape(2, 3),
        torch.tensor([[True, False, True], [False, False, True]]),
        torch.randn(2, 7),
    )


def tiny_bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    ids = torch.randint(0, 50, (2, 7))
    return BertModel(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tiny_llama() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=50,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(0, 50, (2, 7))}


def tiny_t5() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50, use_cache=False, decoder_start_token_id=0
    )
    ids = torch.randint(0, 50, (2, 7))
    return T5ForConditionalGeneration(config).eval(), {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
