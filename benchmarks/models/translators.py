"""Text encoder-decoders of transformers."""

from __future__ import annotations

from typing import Any

from benchmarks.models.entry import Entry
from benchmarks.models.tiny import seq2seq_text

__all__ = ["entries"]

_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def entries() -> list[Entry]:
    """Return the text encoder-decoders."""
    language = "AutoModelForSeq2SeqLM"
    return [
        seq2seq_text("bart", **_BART),
        seq2seq_text("mbart", language, **_BART),
        seq2seq_text("pegasus", language, **_BART),
        seq2seq_text("marian", language, **_BART),
        seq2seq_text("m2m_100", **_BART),
        seq2seq_text("blenderbot", **_BART),
        seq2seq_text("t5", language, **_T5),
        seq2seq_text("mt5", language, **_T5),
        seq2seq_text("umt5", **_T5),
        seq2seq_text("longt5", **_T5, local_radius=3, encoder_attention_type="local"),
        seq2seq_text(
            "switch_transformers", **_T5, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1
        ),
        seq2seq_text(
            "led", **_BART, attention_window=4, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64
        ),
    ]
