"""Models that the tests of the torchscript backend lower: each a module and a function from batch size to inputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Inputs = Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]
F = nn.functional


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Cnn(nn.Module):
    """Convolutions with batch norm, depthwise, transposed and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(4, 5)
        with torch.no_grad():
            for norm in (self.stem[1], self.depthwise[1]):
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.depthwise(self.stem(x)))
        x = F.max_pool2d(F.pad(x, (1, 1, 0, 1)), 3, 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)).log_softmax(-1)


class Recurrent(nn.Module):
    """LSTM and GRU, bidirectional, that start from given and from zero states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 6)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        y, (hidden, cell) = self.lstm(x)
        z, last = self.gru(y.transpose(0, 1), h[None])
        return {"y": y, "states": [hidden, (cell, last)], "z": z, "nothing": None}


class Counting(nn.Module):
    """Two buffers that swap their values at every call, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("a", torch.tensor([1.0, 2.0]))
        self.register_buffer("b", torch.tensor([3.0, 4.0]))

    def forward(self, x: torch.Tensor) -> Any:
        before = self.a.view(1, 2)
        a, b = self.a.clone(), self.b.clone()
        self.count.add_(1)
        self.a.copy_(b)
        self.b.copy_(a)
        return x * self.count + self.a, before + 0, self.count + 0


class Keywords(nn.Module):
    """Several inputs, by position and by name, and of several dtypes."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor, *, mask: torch.Tensor, half: torch.Tensor) -> Any:
        picked = x.gather(1, ids).masked_fill(mask, float("-inf")).softmax(-1).nan_to_num(0.0)
        return {"picked": picked, "half": half * 2 + 1, "any": mask.any(1), "ids": ids // 2 % 3, "rows": x.shape[0]}


class Conditional(nn.Module):
    """Branches that give two values, and share a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        def positive(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.linear(y), y.sum(1)

        def negative(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return y.sin(), y.amax(1) + self.linear.bias.sum()

        first, second = torch.cond(x[0, 0] > 0, positive, negative, (x,))
        return first + 1, second


class EarlyExit(nn.Module):
    """Rows that go on through a second layer, and are put back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.first(x)
        rows = (early.softmax(-1).amax(-1) < 0.5).nonzero().squeeze(1)
        late = self.second(x.index_select(0, rows))
        return early.index_copy(0, rows, late)


def sizes(x: torch.Tensor) -> Any:
    """Arithmetic on sizes of every kind, some of it returned."""
    n, m = x.shape[0], x.shape[1]
    half, rest = x.split([m // 2, m - m // 2], 1)
    y = x.new_zeros(n * 2, max(n, 3) - min(n, 3) + 1) + n / 4
    z = x.reshape(-1)[: n + 2] * (n**2 % 7) + (n / 4) ** 0.5
    return half, rest.flip(0), y, z, n // 3, x.expand(3, n, m)[-1], torch.arange(n, dtype=torch.float32) + (n > 4)


def various(x: torch.Tensor) -> Any:
    """Operators with lists, optional arguments, strings and infinities."""
    n = x.shape[0]
    index = torch.tensor([0, 2, 1])
    top, where = x.topk(3, dim=1, largest=False, sorted=True)
    pieces = torch.chunk(x, 2, 1)
    y = torch.einsum("nij,njk->nik", x.view(n, 2, 4), x.view(n, 4, 2))
    image = F.interpolate(x.view(n, 1, 2, 4), scale_factor=2.0, mode="bilinear", align_corners=False)
    near = F.interpolate(x.view(n, 1, 2, 4), size=(5, 3), mode="nearest")
    mean, var = torch.var_mean(x, dim=1, correction=0)
    clamped = x.clamp(min=float("-inf"), max=0.25).clamp(-9.0)
    scattered = torch.zeros_like(x).scatter(1, where, 1.5).scatter_add(1, where, top)
    picked = x[:, index][:, None, ..., :2]
    rounded = torch.div(x * 10, 3, rounding_mode="floor") + torch.round(x, decimals=2)
    either = torch.where(x > 0, x, 2.0) + torch.where(x > 0, torch.full((), True), torch.full((), False))
    signed = x.to(torch.int64) >> 1, (x > 0) & (x < 1), x.double().to(torch.float16), torch.complex(x, x).abs()
    joined = torch.cat([*pieces, x.roll(1, 1)], -1), torch.stack(x.unbind(1)[:2], 0), x.view(n, 2, -1).mT
    lowest = torch.full((n,), -(2**63), dtype=torch.int64), torch.full((2,), torch.finfo(torch.float32).min)
    return top, where, y, image, near, mean, var, clamped, scattered, picked, rounded, either, signed, joined, lowest


def bert() -> tuple[nn.Module, Inputs]:
    """A tiny BERT."""
    transformers = _transformers()
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertModel(config).eval(), _tokens(mask=True)


def llama() -> tuple[nn.Module, Inputs]:
    """A tiny Llama without cache."""
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).eval(), _tokens(mask=True)


def t5() -> tuple[nn.Module, Inputs]:
    """A tiny T5 without cache."""
    transformers = _transformers()
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, use_cache=False, decoder_start_token_id=0
    )

    def inputs(n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"input_ids": torch.randint(0, 50, (n, 7)), "decoder_input_ids": torch.randint(0, 50, (n, 5))}

    return transformers.T5ForConditionalGeneration(config).eval(), inputs


def mixtral() -> tuple[nn.Module, Inputs]:
    """A tiny Mixtral: a mixture of experts, whose sizes depend on data."""
    transformers = _transformers()
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        num_local_experts=3,
        use_cache=False,
    )
    return transformers.MixtralForCausalLM(config).eval(), _tokens(mask=False)


def _tokens(*, mask: bool) -> Inputs:
    def inputs(n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        attention = torch.ones(n, 7, dtype=torch.int64)
        attention[0, 5:] = 0
        return (), {"input_ids": torch.randint(0, 50, (n, 7)), **({"attention_mask": attention} if mask else {})}

    return inputs


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    return transformers


def _rows(*shape: int) -> Inputs:
    return lambda n: ((torch.randn(n, *shape),), {})


def _recurrent_inputs(n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(n, 6, 4), torch.randn(n, 6)), {}


def _keyword_inputs(n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask, half = torch.rand(n, 3) > 0.5, torch.randn(n, 2).half()
    return (torch.randn(n, 8), torch.randint(0, 8, (n, 3))), {"half": half, "mask": mask}


SMALL: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "cnn": lambda: (Cnn().eval(), _rows(3, 8, 8)),
    "conditional": lambda: (Conditional(), _rows(4)),
    "early-exit": lambda: (EarlyExit(), _rows(4)),
    "keywords": lambda: (Keywords(), _keyword_inputs),
    "recurrent": lambda: (Recurrent().eval(), _recurrent_inputs),
    "sizes": lambda: (Function(sizes), _rows(8)),
    "various": lambda: (Function(various), _rows(8)),
}
TRANSFORMERS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "bert": bert,
    "llama": llama,
    "mixtral": mixtral,
    "t5": t5,
}
