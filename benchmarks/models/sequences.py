"""Hand-written recurrent, multi-input, stateful and adapted models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.entry import Entry

__all__ = ["entries"]


def entries() -> list[Entry]:
    """Return the hand-written models that are not plain convolutional networks."""
    return [
        Entry("lstm", "recurrent", Lstm, lambda batch: (torch.randn(batch, 7, 6),)),
        Entry("gru", "recurrent", Gru, lambda batch: (torch.randint(0, 30, (batch, 7)),)),
        Entry("rnn-cell-loop", "recurrent", CellLoop, lambda batch: (torch.randn(batch, 5, 4), torch.randn(batch, 8))),
        Entry(
            "two-tower",
            "several-inputs",
            TwoTower,
            lambda batch: {"image": torch.randn(batch, 3, 16, 16), "text": torch.randint(0, 50, (batch, 9))},
        ),
        Entry("lora", "adapter", LoraModel, lambda batch: (torch.randn(batch, 6, 16),)),
        Entry(
            "several-inputs-outputs",
            "several-inputs",
            SeveralInputs,
            lambda batch: ([torch.randn(batch, 4), torch.randn(batch, 3)], {"scale": torch.rand(batch, 1)}, 0.5),
        ),
        Entry("tied-weights", "language", TiedLanguageModel, lambda batch: (torch.randint(0, 40, (batch, 8)),)),
        Entry("running-buffers", "stateful", RunningBuffers, lambda batch: (torch.randn(batch, 6),)),
        Entry("graph-convolution", "graph", GraphNet, _graph),
        Entry("mlp-mixer", "mlp", Mixer, lambda batch: (torch.randn(batch, 9, 16),)),
        Entry("transformer-seq2seq", "language", SequenceToSequence, _sequences),
        Entry("top-k-experts", "mixture-of-experts", TopKExperts, lambda batch: (torch.randn(batch, 5, 8),)),
        Entry("autoencoder-spectral", "mlp", autoencoder, lambda batch: (torch.randn(batch, 12),)),
        Entry("condition", "control-flow", Conditional, lambda batch: (torch.randn(batch, 6),)),
        Entry("embedding-bag", "recommender", Recommender, _clicks),
    ]


def _graph(batch: int) -> tuple[Tensor, Tensor]:
    adjacency = (torch.rand(batch, 6, 6) > 0.5).float() + torch.eye(6)
    return torch.randn(batch, 6, 5), adjacency


def _sequences(batch: int) -> dict[str, Tensor]:
    return {"source": torch.randint(0, 30, (batch, 7)), "target": torch.randint(0, 30, (batch, 5))}


def _clicks(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 20, (batch, 4)), torch.randn(batch, 3)


class Lstm(nn.Module):
    """A bidirectional LSTM of two layers, with its states as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, states = self.lstm(x)
        return self.head(y), states


class Gru(nn.Module):
    """Embedding, GRU, attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.score = nn.Linear(12, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.gru(self.embedding(tokens))
        weights = torch.softmax(self.score(y), dim=1)
        return (weights * y).sum(1)


class CellLoop(nn.Module):
    """An LSTM cell and a GRU cell called in a Python loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(4, 8), nn.GRUCell(8, 8)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        cell = torch.zeros_like(state)
        hidden = state
        for step in x.unbind(1):
            hidden, cell = self.lstm(step, (hidden, cell))
            state = self.gru(hidden, state)
        return hidden, state


class TwoTower(nn.Module):
    """A text tower and an image tower joined by cross attention; keyword inputs, a namedtuple out."""

    class Result(NamedTuple):
        """Scores of every pair, and the joined features."""

        scores: Tensor
        features: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16, padding_idx=0)
        self.text = nn.MultiheadAttention(16, 4, batch_first=True)
        self.image = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.BatchNorm2d(16), nn.GELU())
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True, kdim=16, vdim=16)
        self.norm = nn.LayerNorm(16)

    def forward(self, *, image: Tensor, text: Tensor) -> TwoTower.Result:
        words = self.embedding(text)
        words = self.norm(words + self.text(words, words, words, key_padding_mask=text == 0, need_weights=False)[0])
        patches = self.image(image).flatten(2).transpose(1, 2)
        joined, weights = self.cross(words, patches, patches)
        left = functional.normalize(words.mean(1), dim=-1)
        right = functional.normalize(patches.mean(1), dim=-1)
        return TwoTower.Result(left @ right.t(), joined * weights.sum(-1, keepdim=True))


class LoraLinear(nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.scale = 2.0
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(self.dropout(x))) * self.scale


class LoraModel(nn.Module):
    """One attention block whose projections carry LoRA adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = LoraLinear(16, 16), LoraLinear(16, 16), LoraLinear(16, 16)
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = [each(x).view(batch, tokens, 4, 4).transpose(1, 2) for each in (self.query, self.key, self.value)]
        y = functional.scaled_dot_product_attention(*parts, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class SeveralInputs(nn.Module):
    """A list, a dict and a number in; a nested dict with a None, a number and an input passed through out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, parts: list[Tensor], options: dict[str, Tensor], weight: float) -> dict[str, object]:
        total = self.one(parts[0]) * weight + self.two(parts[1]) * options["scale"]
        return {"total": total, "nothing": None, "count": 2, "again": parts[0], "pair": (total.max(1), total > 0)}


class TiedLanguageModel(nn.Module):
    """Input embedding and output projection share one weight, and two blocks are the same block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.embedding(tokens)
        for _ in range(2):
            x = self.block(x, src_mask=mask, is_causal=True)
        return self.head(x)


class RunningBuffers(nn.Module):
    """Counts its calls and keeps a running mean; one buffer is not persistent."""

    calls: Tensor
    mean: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("table", torch.arange(6.0), persistent=False)
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.linear(x - self.mean) + self.table, self.calls * 2


class GraphNet(nn.Module):
    """Graph convolution with a normalised adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1).rsqrt()
        adjacency = degree[..., None] * adjacency * degree[..., None, :]
        x = functional.elu(torch.bmm(adjacency, self.one(nodes)))
        return torch.einsum("bij,bjk->bik", adjacency, self.two(x)).log_softmax(-1)


class Mixer(nn.Module):
    """Token and channel mixing, no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(9, 18), nn.GELU("tanh"), nn.Linear(18, 9))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.norm, self.norm2 = nn.LayerNorm(16), nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).mT).mT
        return x + self.channels(self.norm2(x))


class SequenceToSequence(nn.Module):
    """`nn.Transformer` whole, with a causal target mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.transformer = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(
            self.transformer(self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=True)
        )


class TopKExperts(nn.Module):
    """A router sends each token to two of four experts, computed densely."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.randn(4, 8, 16) * 0.3)
        self.down = nn.Parameter(torch.randn(4, 16, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        gates = torch.zeros(*x.shape[:-1], 4, dtype=x.dtype).scatter(-1, chosen, weights)
        hidden = functional.silu(torch.einsum("btd,edh->bteh", x, self.up))
        return torch.einsum("bteh,ehd,bte->btd", hidden, self.down, gates)


def autoencoder() -> nn.Module:
    """Return an autoencoder with spectral normalisation."""
    spectral_norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        *(spectral_norm(nn.Linear(12, 8)), nn.Softsign(), nn.Linear(8, 3), nn.Sigmoid()),
        *(nn.Linear(3, 8), nn.CELU(), spectral_norm(nn.Linear(8, 12)), nn.Hardtanh()),
    )


class Conditional(nn.Module):
    """`torch.cond` on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: self.one(v).relu(), lambda v: self.two(v) - 1, (x,))


class Recommender(nn.Module):
    """Embedding bags, feature crosses, a deep part."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 6, mode="mean")
        self.wide, self.deep = nn.Linear(3, 6), nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, items: Tensor, features: Tensor) -> Tensor:
        left, right = self.bag(items), self.wide(features)
        return torch.sigmoid(self.deep(torch.cat([left * right, right], 1))).squeeze(-1)
