"""Networks at the size at which people deploy them, from transformers' configurations, with random weights.

Right for speed and drift, never for accuracy. Biases, scales and batch statistics are made non-trivial (`settle`), or
folding bugs would stay hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.models.entry import Entry, Inputs

__all__ = ["full_size"]

_TOKENS = 128


class _First(nn.Module):
    """The model with its main output alone, in inference: no caches, no tuple of everything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits, or the last hidden state."""
        return self.model(**inputs, return_dict=True)[0]  # type: ignore[no-any-return]


class _Pictures(_First):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(pixel_values=pixel_values)


class _Text(_First):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


class _Causal(_First):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.model(input_ids=input_ids, use_cache=False, return_dict=True)[0]  # type: ignore[no-any-return]


class _Audio(_First):
    def forward(self, input_features: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(input_features=input_features)


def _pictures(batch: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 224, 224)}


def _text(batch: int) -> Inputs:
    tokens = torch.randint(0, 1000, (batch, _TOKENS))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _prompt(batch: int) -> Inputs:
    return {"input_ids": torch.randint(0, 1000, (batch, _TOKENS))}


def _sound(batch: int) -> Inputs:
    return {"input_features": torch.randn(batch, 80, 3000)}


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return _Pictures(ResNetForImageClassification(ResNetConfig(num_labels=1000)))


def _mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return _Pictures(MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)))


def _efficientnet() -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=1000
    )
    return _Pictures(EfficientNetForImageClassification(config))


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _Pictures(ConvNextForImageClassification(ConvNextConfig(num_labels=1000)))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return _Pictures(ViTForImageClassification(ViTConfig(num_labels=1000)))


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return _Pictures(SwinForImageClassification(SwinConfig(num_labels=1000)))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return _Text(BertModel(BertConfig(), add_pooling_layer=False))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _Causal(GPT2LMHeadModel(GPT2Config()))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    return _Causal(LlamaForCausalLM(config))


def _whisper() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return _Audio(WhisperEncoder(WhisperConfig()))


_MODELS: tuple[tuple[str, str, Callable[[], nn.Module], Callable[[int], Inputs]], ...] = (
    ("resnet-50", "cnn", _resnet, _pictures),
    ("mobilenet-v2", "cnn", _mobilenet, _pictures),
    ("efficientnet-b0", "cnn", _efficientnet, _pictures),
    ("convnext-tiny", "cnn", _convnext, _pictures),
    ("vit-b/16", "vision transformer", _vit, _pictures),
    ("swin-t", "vision transformer", _swin, _pictures),
    ("bert-base", "encoder", _bert, _text),
    ("gpt-2", "decoder", _gpt2, _prompt),
    ("llama-gqa", "decoder", _llama, _prompt),
    ("whisper-tiny-encoder", "audio", _whisper, _sound),
)


def full_size() -> list[Entry]:
    """Return the entries, none built yet."""
    return [Entry(*each) for each in _MODELS]
