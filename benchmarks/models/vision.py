"""Vision models of transformers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models.entry import Entry
from benchmarks.models.tiny import SMALL, tiny, waves

__all__ = ["entries"]

# A hand-written model has the plain name.
_FREE = {"resnet": "hf-resnet"}
_VIT = {**SMALL, "image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}


def entries() -> list[Entry]:
    """Return the vision models."""
    return [*_transformers(), *_convolutional(), *_hierarchical(), *_dense_prediction(), *_video()]


def _image(kind: str, head: str = "AutoModel", side: int = 32, **options: Any) -> Entry:
    return Entry(_FREE.get(kind, kind), "vision", tiny(kind, head, **options), waves("pixel_values", 3, side, side))


def _transformers() -> list[Entry]:
    return [
        _image("vit", "AutoModelForImageClassification", **_VIT),
        _image("deit", **_VIT),
        _image("beit", **_VIT, use_relative_position_bias=True, layer_scale_init_value=0.1),
        _image("data2vec-vision", **_VIT, use_shared_relative_position_bias=True),
        _image("dinov2", **_VIT),
        _image("dinov2_with_registers", **_VIT),
        _image("vit_msn", **_VIT),
        _image("siglip_vision_model", **_VIT),
        _image(
            "levit",
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[2, 3, 4],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            image_size=64,
            side=64,
        ),
    ]


def _convolutional() -> list[Entry]:
    return [
        _image("resnet", "AutoModelForImageClassification", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2]),
        _image("regnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4),
        _image("bit", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4),
        _image("convnext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, layer_scale_init_value=0.1),
        _image("convnextv2", "AutoModelForImageClassification", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        _image("mobilenet_v1", "AutoModelForImageClassification", depth_multiplier=0.25, image_size=32),
        _image("mobilenet_v2", depth_multiplier=0.25, image_size=32),
        _image(
            "efficientnet",
            "AutoModelForImageClassification",
            width_coefficient=0.25,
            depth_coefficient=0.5,
            hidden_dim=320,
            image_size=32,
        ),
        _image("poolformer", hidden_sizes=[8, 12, 16, 16], depths=[1, 1, 1, 1], side=64),
        _image("focalnet", image_size=32, embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]),
    ]


def _hierarchical() -> list[Entry]:
    return [
        _image("swin", **_SWIN),
        _image("swinv2", **_SWIN),
        _image(
            "mobilevit",
            "AutoModelForImageClassification",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
            num_attention_heads=4,
            side=64,
        ),
        _image("mobilevitv2", image_size=64, width_multiplier=0.25, side=64),
        _image(
            "pvt",
            image_size=64,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 3, 4],
            side=64,
        ),
        _image(
            "pvt_v2",
            image_size=64,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 3, 4],
            side=64,
        ),
        _image("cvt", embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 3], side=64),
        _image(
            "hiera",
            image_size=[64, 64],
            side=64,
            embed_dim=8,
            depths=[1, 1, 1],
            num_heads=[1, 2, 4],
            masked_unit_size=[4, 4],
            num_query_pool=2,
        ),
    ]


def _dense_prediction() -> list[Entry]:
    segformer = {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
    }
    return [
        _image("segformer", "AutoModelForSemanticSegmentation", side=64, **segformer),
        _image("glpn", "AutoModelForDepthEstimation", side=64, **segformer),
        _image("yolos", "AutoModelForObjectDetection", **{**_VIT, "image_size": [32, 32]}, num_detection_tokens=5),
        _image(
            "dpt",
            "AutoModelForDepthEstimation",
            **_VIT,
            backbone_out_indices=[0, 1],
            neck_hidden_sizes=[8, 16],
            reassemble_factors=[4, 2],
            fusion_hidden_size=16,
            is_hybrid=False,
        ),
        _image("swin2sr", side=16, image_size=16, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        Entry(
            "detr",
            "vision",
            tiny(
                "detr",
                "AutoModelForObjectDetection",
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                num_queries=5,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone=None,
                backbone_config={
                    "model_type": "resnet",
                    "embedding_size": 8,
                    "hidden_sizes": [8, 16],
                    "depths": [1, 1],
                    "out_features": ["stage2"],
                },
            ),
            lambda batch: {
                "pixel_values": torch.randn(batch, 3, 32, 32),
                "pixel_mask": torch.ones(batch, 32, 32, dtype=torch.int64),
            },
        ),
    ]


def _video() -> list[Entry]:
    frames = waves("pixel_values", 4, 3, 16, 16)
    options = {**_VIT, "image_size": 16, "num_frames": 4}
    return [
        Entry("timesformer", "vision", tiny("timesformer", **options), frames),
        Entry("videomae", "vision", tiny("videomae", **options, tubelet_size=2), frames),
        Entry("vivit", "vision", tiny("vivit", **options, tubelet_size=[2, 8, 8]), frames),
    ]
