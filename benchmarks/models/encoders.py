"""Text encoders of transformers."""

from __future__ import annotations

import torch

from benchmarks.models.entry import Entry
from benchmarks.models.tiny import SMALL, text, tiny, tokens

__all__ = ["entries"]


def entries() -> list[Entry]:
    """Return the text encoders."""
    family = "encoder"
    return [
        text("bert", family),
        text("roberta", family, "AutoModelForMaskedLM"),
        text("distilbert", family, "AutoModelForQuestionAnswering", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        text("albert", family, embedding_size=16),
        text("electra", family, "AutoModelForSequenceClassification", embedding_size=16),
        text("deberta-v2", family, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
        text("mpnet", family),
        text("mobilebert", family, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
        text("squeezebert", family, embedding_size=32),
        text("convbert", family, embedding_size=32, conv_kernel_size=3),
        Entry(
            "fnet",
            family,
            tiny("fnet", **SMALL),
            lambda batch: {"input_ids": torch.randint(3, 99, (batch, 12))},
        ),
        text("modernbert", family, "AutoModelForTokenClassification", cls_token_id=3, sep_token_id=4),
        Entry(
            "nystromformer",
            family,
            tiny("nystromformer", **SMALL, num_landmarks=12, segment_means_seq_len=12),
            lambda batch: {"input_ids": torch.randint(3, 99, (batch, 12))},
        ),
        text("roformer", family, embedding_size=32),
        text("rembert", family, input_embedding_size=16, output_embedding_size=16),
        text("xlm", family, emb_dim=32, n_layers=2, n_heads=4),
        text("big_bird", family, attention_type="original_full"),
        text("esm", family, mask_token_id=4, position_embedding_type="rotary"),
        Entry(
            "layoutlm",
            family,
            tiny("layoutlm", **SMALL, max_2d_position_embeddings=128),
            tokens(bbox=lambda batch: torch.randint(0, 50, (batch, 12, 4)).cumsum(-1).clamp(max=120)),
        ),
        Entry(
            "funnel",
            family,
            tiny(
                "funnel", "FunnelModel", vocab_size=99, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64
            ),
            tokens(),
        ),
    ]
