"""Tiny transformers models with random weights, from a model type and the options of its configuration.

Cases not handled: anything that needs a download; no tokenizer and no processor is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.entry import Entry, Inputs

__all__ = ["SMALL", "VOCABULARY", "seq2seq_text", "text", "tiny", "tokens", "waves"]

VOCABULARY = 99
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(kind: str, head: str = "AutoModel", **options: Any) -> Callable[[], nn.Module]:
    """Return what builds a model of the type `kind`; `head` is an Auto class or the name of a model class."""

    def make() -> nn.Module:
        import transformers

        config = transformers.AutoConfig.for_model(kind, **options)
        cls: Any = getattr(transformers, head)
        model: nn.Module = cls.from_config(config) if head.startswith("Auto") else cls(config)
        if getattr(model, "_can_set_experts_implementation", bool)():
            # The default, grouped_mm, is a custom operator that exists only where transformers is imported.
            model.set_experts_implementation("batched_mm")  # type: ignore[operator]
        return model

    return make


def tokens(length: int = 12, **more: Callable[[int], Tensor]) -> Callable[[int], Inputs]:
    """Return what makes token ids and an attention mask with padding in the last sample, and `more` inputs."""

    def make(batch: int) -> Inputs:
        ids = torch.randint(3, VOCABULARY, (batch, length))
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[-1, -3:] = 0
        return {"input_ids": ids, "attention_mask": mask, **{name: each(batch) for name, each in more.items()}}

    return make


def waves(name: str, *shape: int) -> Callable[[int], Inputs]:
    """Return what makes one float input called `name`, its shape without the batch."""
    return lambda batch: {name: torch.randn(batch, *shape)}


def text(kind: str, family: str, head: str = "AutoModel", **options: Any) -> Entry:
    """Return the entry of a text model that takes ids and a mask."""
    return Entry(kind, family, tiny(kind, head, **{**SMALL, **options}), tokens())


def seq2seq_text(kind: str, head: str = "AutoModel", **options: Any) -> Entry:
    """Return the entry of a text encoder-decoder."""
    inputs = tokens(decoder_input_ids=lambda batch: torch.randint(3, VOCABULARY, (batch, 5)))
    return Entry(kind, "encoder-decoder", tiny(kind, head, **{**SMALL, **options}), inputs)
