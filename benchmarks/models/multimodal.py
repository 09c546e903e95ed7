"""Models of transformers that join pictures or sound with text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.entry import Entry, Inputs
from benchmarks.models.tiny import SMALL, VOCABULARY, tiny, tokens

__all__ = ["entries"]

_TEXT: dict[str, Any] = {**SMALL, "projection_dim": 16}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
_LLAMA = {"model_type": "llama", **SMALL, "num_key_value_heads": 2}
_IMAGE_TOKEN = VOCABULARY - 1


def entries() -> list[Entry]:
    """Return the multimodal models."""
    both = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 16}
    return [
        _pair("clip", **both),
        _pair("chinese_clip", **both),
        _pair("siglip", text_config={**_TEXT, "projection_size": 32}, vision_config=_VISION),
        _pair("altclip", text_config={**_TEXT, "project_dim": 32}, vision_config=_VISION, projection_dim=16),
        _pair("clipseg", **both, reduce_dim=16, extract_layers=[0, 1], conditional_layer=0),
        _pair(
            "blip",
            text_config={**_TEXT, "encoder_hidden_size": 32},
            vision_config=_VISION,
            projection_dim=16,
            image_text_hidden_size=16,
        ),
        _pair("git", side=32, **SMALL, vision_config=_VISION),
        _pair(
            "flava",
            text_config=_TEXT,
            image_config=_VISION,
            multimodal_config=_TEXT,
            hidden_size=32,
            projection_dim=16,
            image_codebook_config={},
        ),
        _pair(
            "vilt",
            **{**SMALL, **_VISION},
            type_vocab_size=2,
            max_image_length=-1,
            more={
                "token_type_ids": lambda batch: torch.zeros(batch, 12, dtype=torch.int64),
                "pixel_mask": lambda batch: torch.ones(batch, 32, 32, dtype=torch.int64),
            },
        ),
        _pair(
            "bridgetower",
            hidden_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            intermediate_size=64,
            text_config={**_TEXT, "pad_token_id": 1},
            vision_config={**_VISION, "hidden_size": 64},
            share_cross_modal_transformer_layers=True,
        ),
        _pair(
            "align",
            text_config=_TEXT,
            vision_config={"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 80},
            projection_dim=80,
        ),
        _pair(
            "groupvit",
            text_config=_TEXT,
            projection_dim=16,
            projection_intermediate_dim=32,
            vision_config={
                **_VISION,
                "depths": [1, 1, 1],
                "num_group_tokens": [4, 2, 0],
                "num_output_groups": [4, 2, 0],
            },
        ),
        _pair(
            "layoutlmv3",
            side=32,
            **SMALL,
            input_size=32,
            patch_size=8,
            coordinate_size=5,
            shape_size=6,
            max_2d_position_embeddings=128,
            rel_pos_bins=8,
            max_rel_pos=16,
            rel_2d_pos_bins=8,
            max_rel_2d_pos=16,
            more={"bbox": lambda batch: torch.randint(0, 30, (batch, 12, 4)).cumsum(-1).clamp(max=120)},
        ),
        _pair("metaclip_2", **{**both, "text_config": {**_TEXT, "eos_token_id": 2}}),
        *_image_to_text(),
        _clap(),
    ]


def _pair(kind: str, side: int = 32, more: dict[str, Callable[[int], Tensor]] | None = None, **options: Any) -> Entry:
    picture = {"pixel_values": lambda batch: torch.randn(batch, 3, side, side)}
    return Entry(kind, "multimodal", tiny(kind, **options), tokens(**picture, **(more or {})))


def _image_to_text() -> list[Entry]:
    vision = {"model_type": "clip_vision_model", **_VISION}
    siglip = {"model_type": "siglip_vision_model", **_VISION}
    language = "AutoModelForImageTextToText"
    return [
        Entry(
            "llava",
            "multimodal",
            tiny(
                "llava",
                language,
                text_config=_LLAMA,
                vision_config=vision,
                image_token_index=_IMAGE_TOKEN,
                image_seq_length=16,
            ),
            _prompt(16),
        ),
        Entry(
            "paligemma",
            "multimodal",
            tiny(
                "paligemma",
                language,
                text_config={"model_type": "gemma", **SMALL, "num_key_value_heads": 1, "head_dim": 8},
                vision_config=siglip,
                image_token_index=_IMAGE_TOKEN,
                projection_dim=32,
                hidden_size=32,
            ),
            _prompt(16),
        ),
        Entry(
            "blip-2",
            "multimodal",
            tiny(
                "blip-2",
                "Blip2ForConditionalGeneration",
                vision_config=_VISION,
                qformer_config={**SMALL, "encoder_hidden_size": 32},
                text_config={"model_type": "opt", **SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
                num_query_tokens=4,
                image_token_index=_IMAGE_TOKEN,
            ),
            _prompt(4),
        ),
    ]


def _prompt(image_tokens: int) -> Callable[[int], Inputs]:
    def make(batch: int) -> Inputs:
        ids = torch.randint(3, _IMAGE_TOKEN, (batch, image_tokens + 8))
        ids[:, 2 : 2 + image_tokens] = _IMAGE_TOKEN
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(batch, 3, 32, 32)}

    return make


def _clap() -> Entry:
    sound = {
        "spec_size": 32,
        "num_mel_bins": 8,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "window_size": 4,
        "projection_dim": 16,
    }
    features = {"input_features": lambda batch: torch.randn(batch, 1, 100, 8)}
    return Entry(
        "clap", "multimodal", tiny("clap", text_config=_TEXT, audio_config=sound, projection_dim=16), tokens(**features)
    )
