"""A tiny configuration of each family of bases, as transformers has them: what packs hold, and what they refuse.

Windows are of 16 tokens, so that rows reach beyond them.
"""

import transformers
from both_ways import VOCAB

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
HEADS = {**COMMON, "head_dim": 16}
WINDOW = {"sliding_window": 16}
KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
FEW = {"num_experts_per_tok": 2}
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14}  # fmt: skip


def _of(name, **options):
    return lambda: getattr(transformers, f"{name}Config")(**options)


def _without(*names, **options):
    return {**{name: value for name, value in COMMON.items() if name not in names}, **options}


PLAIN = _without("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "max_position_embeddings")  # fmt: skip

HELD = {
    "Llama": (_of("Llama", **COMMON), "all-linear"),
    "Mistral": (_of("Mistral", **HEADS, **WINDOW), "all-linear"),
    "Qwen2": (_of("Qwen2", **COMMON), "all-linear"),
    "Qwen3": (_of("Qwen3", **HEADS), "all-linear"),
    "Qwen3-MoE": (
        _of("Qwen3Moe", **HEADS, **FEW, moe_intermediate_size=32, num_experts=4, decoder_sparse_step=1, mlp_only_layers=[]),
        "experts",
    ),
    "Mixtral": (_of("Mixtral", **HEADS, **FEW, num_local_experts=4), "all-linear"),
    "Mixtral, attention alone": (
        _of("Mixtral", **HEADS, **FEW, num_local_experts=4, router_jitter_noise=0.5),
        "attention",
    ),
    "Gemma 2": (
        _of("Gemma2", **HEADS, **WINDOW, **KINDS, query_pre_attn_scalar=16, attn_logit_softcapping=2.0),
        "all-linear",
    ),
    "Gemma 3": (_of("Gemma3Text", **HEADS, **WINDOW, **KINDS, query_pre_attn_scalar=24), "all-linear"),
    "Gemma 3, multimodal": (
        _of("Gemma3", text_config={**HEADS, **WINDOW, **KINDS}, vision_config=EYES, mm_tokens_per_image=4,
            boi_token_index=90, eoi_token_index=91, image_token_index=92),
        "all-linear",
    ),
    "Phi-3": (_of("Phi3", **COMMON, **WINDOW), "all-linear"),
    "GPT-2": (
        _of("GPT2", **PLAIN, n_embd=64, n_layer=2, n_head=4, n_positions=128, embd_pdrop=0.0, attn_pdrop=0.0,
            resid_pdrop=0.0),
        "all-linear",
    ),
    "GPT-NeoX": (
        _of("GPTNeoX", **_without("num_key_value_heads"), hidden_dropout=0.0, attention_dropout=0.0),
        "all-linear",
    ),
    "OPT": (
        _of("OPT", **_without("intermediate_size", "num_key_value_heads", "initializer_range"), ffn_dim=128, init_std=0.2,
            word_embed_proj_dim=64, dropout=0.0),
        "all-linear",
    ),
    "OLMo 2": (_of("Olmo2", **COMMON), "all-linear"),
    "Granite": (
        _of("Granite", **COMMON, logits_scaling=4.0, attention_multiplier=0.1, embedding_multiplier=2.0,
            residual_multiplier=0.5),
        "all-linear",
    ),
    "SmolLM3": (_of("SmolLM3", **COMMON), "all-linear"),
    "gpt-oss": (_of("GptOss", **HEADS, **FEW, **WINDOW, num_local_experts=4), "all-linear"),
    "DeepSeek-V3": (
        _of("DeepseekV3", **{**COMMON, "num_key_value_heads": 4}, **FEW, moe_intermediate_size=32, n_routed_experts=4,
            n_group=2, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16,
            v_head_dim=12, first_k_dense_replace=1, n_shared_experts=1),
        "all-linear",
    ),
}  # fmt: skip
"""Family -> its configuration, and `base.targets`."""

REFUSED = {
    "Falcon": (
        _of("Falcon", **PLAIN, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=False),
        "does not call its attention through transformers' AttentionInterface",
    ),
    "Bloom": (_of("Bloom", vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4), "AttentionInterface"),
    "MPT": (_of("Mpt", vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4), "AttentionInterface"),
    "RWKV": (_of("Rwkv", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2), "AttentionInterface"),
    "Qwen3-Next": (
        _of("Qwen3Next", **HEADS, **FEW, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32,
            linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16),
        "'linear_attention' (2 of 2)",
    ),
    "Mamba": (_of("Mamba", **PLAIN, hidden_size=64, num_hidden_layers=2, state_size=8), "'linear_attention' (2 of 2)"),
    "Jamba": (
        _of("Jamba", **COMMON, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1),
        "'linear_attention' (1 of 2)",
    ),
    "LFM2": (_of("Lfm2", **COMMON, full_attn_idxs=[1]), "'conv' (1 of 2)"),
    "Falcon-H1": (_of("FalconH1", **HEADS, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8), "'hybrid'"),
    "Llama 4": (
        _of("Llama4Text", **HEADS, num_local_experts=2, num_experts_per_tok=1, attention_chunk_size=16,
            interleave_moe_layer_step=1, intermediate_size_mlp=64),
        "'chunked_attention'",
    ),
}  # fmt: skip
"""Family -> its configuration, and what is said of it."""
