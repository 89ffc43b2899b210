"""What a model is beside its tensors, in GGUF's keys; what llama.cpp would compute otherwise is refused by name."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bitlora.gguf.architecture import Architecture, head_width
from bitlora.gguf.rotary import add_rotary

OF_27B: Final = {"gemma2": 46, "gemma3": 62}
"""Blocks by which llama.cpp knows the model of 27 billion parameters, whose scores it scales by another width."""


def add_hyperparameters(writer: Any, base: Any, found: Architecture) -> dict[str, npt.NDArray[np.float32]]:
    """Write a model's shapes and constants.

    Args:
        writer: a `gguf.GGUFWriter`.
        base: transformers' configuration of the model.

    Returns:
        Tensors that belong to them, by their names in GGUF: factors of the rotary embedding.

    Raises:
        ValueError: llama.cpp would compute something else.
    """
    _refuse(base, found)
    width = head_width(base)
    writer.add_context_length(_context(base, found))
    writer.add_embedding_length(base.hidden_size)
    writer.add_block_count(base.num_hidden_layers)
    writer.add_feed_forward_length(base.intermediate_size)
    writer.add_head_count(base.num_attention_heads)
    writer.add_head_count_kv(base.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(base.rms_norm_eps)
    writer.add_vocab_size(base.vocab_size)
    if found.window:
        writer.add_sliding_window(base.sliding_window)
    if found.name == "phi3":
        writer.add_sliding_window(0)  # llama.cpp knows Phi-4 by it; of the others it sets the window aside
    if found.name == "gemma2":
        writer.add_attn_logit_softcapping(base.attn_logit_softcapping)
    if (cap := getattr(base, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)
    return add_rotary(writer, base, found)


def _refuse(base: Any, found: Architecture) -> None:
    """Raise ValueError where llama.cpp has a constant of its own for what the configuration says otherwise."""
    activation = getattr(base, "hidden_activation", None) or base.hidden_act
    if activation != found.activation:
        raise ValueError(f"hidden_act: {activation}: llama.cpp's {found.name} has {found.activation}")
    if found.tied and not base.tie_word_embeddings:
        raise ValueError(f"tie_word_embeddings: false: the head of llama.cpp's {found.name} is its embedding")
    if found.window:
        usual = ["full_attention" if not (block + 1) % found.window else "sliding_attention" for block in _blocks(base)]
        if list(base.layer_types) != usual:
            raise ValueError(f"layer_types: llama.cpp's {found.name} sees all from each {found.window}. block alone")
        width = _scaled_width(base, found)
        if base.query_pre_attn_scalar != width:
            raise ValueError(f"query_pre_attn_scalar: {base.query_pre_attn_scalar}: llama.cpp has {width} there")
    if getattr(base, "use_bidirectional_attention", False):
        raise ValueError("use_bidirectional_attention: llama.cpp's attention is causal")
    if found.name == "gemma2" and None in (base.attn_logit_softcapping, base.final_logit_softcapping):
        raise ValueError("attn_logit_softcapping: null: llama.cpp's gemma2 has caps")
    if found.name == "gemma3" and base.attn_logit_softcapping is not None:
        raise ValueError(f"attn_logit_softcapping: {base.attn_logit_softcapping}: llama.cpp's gemma3 has none")


def _blocks(base: Any) -> range:
    return range(base.num_hidden_layers)


def _scaled_width(base: Any, found: Architecture) -> int:
    """What scores are divided by the root of."""
    if base.num_hidden_layers == OF_27B[found.name]:
        return int(base.hidden_size // base.num_attention_heads)
    return head_width(base)


def _context(base: Any, found: Architecture) -> int:
    """Where transformers has a window and llama.cpp none, so many tokens that it makes no difference."""
    most, window = int(base.max_position_embeddings), getattr(base, "sliding_window", None)
    return most if found.window or window is None else min(most, int(window))
