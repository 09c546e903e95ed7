"""Decoders of transformers: dense, mixture of experts, state-space. They return their caches, as they do by default."""

from __future__ import annotations

from benchmarks.models.entry import Entry
from benchmarks.models.tiny import text

__all__ = ["entries"]

_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4}


def entries() -> list[Entry]:
    """Return the decoders."""
    return [*_dense(), *_experts(), *_state_space()]


def _dense() -> list[Entry]:
    family, language = "decoder", "AutoModelForCausalLM"
    return [
        text("gpt2", family, language, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        text("gpt_neo", family, language, num_layers=2, attention_types=[[["global", "local"], 1]], window_size=4),
        text("gpt_neox", family, language),
        text("gptj", family, language, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
        text("codegen", family, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
        text("opt", family, language, ffn_dim=64, word_embed_proj_dim=32),
        text("bloom", family, language, n_head=4, n_layer=2),
        text("mpt", family, language, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
        text("falcon", family, language),
        text("llama", family, language, **_GROUPED),
        text("mistral", family, language, **_GROUPED, sliding_window=6),
        text("qwen2", family, language, num_key_value_heads=2),
        text("qwen3", family, language, **_GROUPED),
        text("gemma", family, language, **_GROUPED),
        text("gemma2", family, language, **_GROUPED, sliding_window=6),
        text("gemma3_text", family, language, **_GROUPED, sliding_window=6),
        text("phi", family, language),
        text("phi3", family, language),
        text("stablelm", family, language, num_key_value_heads=4),
        text("starcoder2", family, language, num_key_value_heads=2),
        text("cohere", family, language, num_key_value_heads=2),
        text("olmo2", family, language),
        text("granite", family, language, num_key_value_heads=2),
        text("glm", family, language, **_GROUPED),
        text("smollm3", family, language, num_key_value_heads=2),
        text("xglm", family, language, d_model=32, num_layers=2, attention_heads=4, ffn_dim=64),
    ]


def _experts() -> list[Entry]:
    family, language = "mixture-of-experts", "AutoModelForCausalLM"
    few = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return [
        text("mixtral", family, language, num_key_value_heads=2, num_local_experts=4),
        text("qwen2_moe", family, language, num_key_value_heads=2, **few, shared_expert_intermediate_size=32),
        text("qwen3_moe", family, language, **_GROUPED, **few),
        text("olmoe", family, language, **few),
        text("granitemoe", family, language, num_key_value_heads=2, num_local_experts=4),
        text(
            "deepseek_v3",
            family,
            language,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        ),
        text("gpt_oss", family, language, **_GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
    ]


def _state_space() -> list[Entry]:
    family, language = "state-space", "AutoModelForCausalLM"
    return [
        text("mamba", family, language, state_size=8, use_mambapy=False),
        text("mamba2", family, language, num_heads=8, head_dim=8, state_size=8, n_groups=2, chunk_size=4),
        text("falcon_mamba", family, language, state_size=8),
        text(
            "jamba",
            family,
            language,
            num_key_value_heads=2,
            **_MAMBA,
            num_experts=2,
            attn_layer_offset=1,
            attn_layer_period=2,
            expert_layer_offset=1,
            expert_layer_period=2,
            use_mamba_kernels=False,
        ),
        text(
            "bamba",
            family,
            language,
            num_key_value_heads=2,
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=4,
            attn_layer_indices=[1],
        ),
        text(
            "recurrent_gemma",
            family,
            language,
            num_key_value_heads=1,
            lru_width=32,
            attention_window_size=8,
            block_types=["recurrent", "attention"],
        ),
        text("rwkv", family, language, attention_hidden_size=32, context_length=64),
        text("lfm2", family, language, num_key_value_heads=2, layer_types=["conv", "full_attention"], conv_L_cache=3),
    ]
