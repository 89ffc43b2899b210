"""Small random models of the kinds that llama.cpp knows, and small tokenizers that cut texts as known ones do."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN = {
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "attn_implementation": "eager"},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "llama": {"head_dim": 24, "attention_bias": True, "mlp_bias": True},
    "qwen3": {"head_dim": 32},
}
"""What a kind's configuration has besides; heads that are not hidden size over heads too."""


def tiny(kind: str, **options: Any) -> Any:
    """A random model of a kind; its norms are not all alike, so that a norm in the wrong place is seen."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {}), **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (1.0 if "norm" in name else 0.5))
    return model


def byte_tokenizer() -> Any:
    """Of single bytes: the tokens are TOKENS."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(TOKENS)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return _fast(backend)


def trained(cut: Any, texts: list[str], whole_words: bool = False) -> Any:
    """A byte-level tokenizer with some hundred merges learned from texts.

    Args:
        cut: the pre-tokenizer.
        whole_words: a word that is a token is one, whatever the merges come to.
    """
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=whole_words))
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return _fast(backend)


def sentencepiece_like(texts: list[str], normalizer: Any, cut: Any) -> Any:
    """A tokenizer as transformers makes them of SentencePiece's: ▁ for a space, bytes for what no token is of."""
    grown = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    grown.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    grown.train_from_iterator(texts, trainer)
    described = json.loads(grown.to_str())
    learned = [token for token in described["model"]["vocab"] if token != "<unk>"]
    listed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocab = {token: at for at, token in enumerate(listed)}
    merges = [tuple(pair) for pair in described["model"]["merges"]]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, cut
    backend.add_special_tokens(["<s>", "</s>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _fast(backend: tokenizers.Tokenizer) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
