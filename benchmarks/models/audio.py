"""Audio and time-series models of transformers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models.entry import Entry
from benchmarks.models.tiny import SMALL, VOCABULARY, tiny, waves

__all__ = ["entries"]

_WAVE: dict[str, Any] = {
    **SMALL,
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def entries() -> list[Entry]:
    """Return the audio and time-series models."""
    return [*_speech(), *_other_audio(), *_time_series()]


def _speech() -> list[Entry]:
    sound = waves("input_values", 800)
    decoder = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    return [
        Entry("wav2vec2", "audio", tiny("wav2vec2", "AutoModelForCTC", **_WAVE), sound),
        Entry("hubert", "audio", tiny("hubert", **_WAVE), sound),
        Entry("wavlm", "audio", tiny("wavlm", **_WAVE), sound),
        Entry("unispeech", "audio", tiny("unispeech", **_WAVE), sound),
        Entry("data2vec-audio", "audio", tiny("data2vec-audio", **_WAVE), sound),
        Entry("wav2vec2-conformer", "audio", tiny("wav2vec2-conformer", **_WAVE, conv_depthwise_kernel_size=5), sound),
        Entry("sew", "audio", tiny("sew", **_WAVE, squeeze_factor=2), sound),
        Entry(
            "wav2vec2-bert",
            "audio",
            tiny("wav2vec2-bert", **SMALL, feature_projection_input_dim=16),
            waves("input_features", 12, 16),
        ),
        Entry(
            "whisper",
            "audio",
            tiny(
                "whisper",
                "AutoModelForSpeechSeq2Seq",
                **decoder,
                num_mel_bins=8,
                max_source_positions=20,
                max_target_positions=20,
            ),
            lambda batch: {
                "input_features": torch.randn(batch, 8, 40),
                "decoder_input_ids": torch.randint(3, VOCABULARY, (batch, 5)),
            },
        ),
        Entry(
            "speech_to_text",
            "audio",
            tiny(
                "speech_to_text",
                **decoder,
                num_conv_layers=2,
                conv_kernel_sizes=[3, 3],
                conv_channels=16,
                input_feat_per_channel=8,
                input_channels=1,
                max_source_positions=40,
                max_target_positions=20,
            ),
            lambda batch: {
                "input_features": torch.randn(batch, 32, 8),
                "decoder_input_ids": torch.randint(3, VOCABULARY, (batch, 5)),
            },
        ),
    ]


def _other_audio() -> list[Entry]:
    return [
        Entry(
            "audio-spectrogram-transformer",
            "audio",
            tiny(
                "audio-spectrogram-transformer",
                **SMALL,
                patch_size=4,
                num_mel_bins=16,
                max_length=24,
                frequency_stride=4,
                time_stride=4,
            ),
            waves("input_values", 24, 16),
        ),
        Entry(
            "encodec",
            "audio",
            tiny(
                "encodec",
                num_filters=4,
                hidden_size=16,
                num_residual_layers=1,
                upsampling_ratios=[4, 2],
                codebook_size=16,
                codebook_dim=16,
                num_lstm_layers=1,
                sampling_rate=400,
                target_bandwidths=[0.4],
            ),
            waves("input_values", 1, 160),
        ),
        Entry("hifigan", "audio", _hifigan, waves("spectrogram", 12, 8)),
    ]


def _hifigan() -> torch.nn.Module:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=16,
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    return SpeechT5HifiGan(config)


def _time_series() -> list[Entry]:
    history = waves("past_values", 32, 3)
    return [
        Entry(
            "patchtst",
            "time-series",
            tiny(
                "patchtst",
                num_input_channels=3,
                context_length=32,
                patch_length=8,
                patch_stride=8,
                d_model=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=32,
                use_cls_token=True,
                do_mask_input=False,
            ),
            history,
        ),
        Entry(
            "patchtsmixer",
            "time-series",
            tiny(
                "patchtsmixer",
                num_input_channels=3,
                context_length=32,
                patch_length=8,
                patch_stride=8,
                d_model=16,
                num_layers=2,
            ),
            history,
        ),
        Entry(
            "time_series_transformer",
            "time-series",
            tiny(
                "time_series_transformer",
                "TimeSeriesTransformerModel",
                prediction_length=4,
                context_length=8,
                lags_sequence=[1, 2],
                num_time_features=1,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
            ),
            lambda batch: {
                "past_values": torch.rand(batch, 10),
                "past_time_features": torch.randn(batch, 10, 1),
                "past_observed_mask": torch.ones(batch, 10),
                "future_values": torch.rand(batch, 4),
                "future_time_features": torch.randn(batch, 4, 1),
            },
        ),
    ]
