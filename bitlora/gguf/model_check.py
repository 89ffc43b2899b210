"""A whole model read out of its GGUF file, back into transformers' names and order: it shares neither names nor the order
of rows with `bitlora.gguf.model_file`, which writes it, so that a slip there is not made here again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

OUTSIDE: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYERS: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
"""A block's tensors; of these some are called otherwise in models that have more of them."""
OTHERWISE: Final = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "gemma2": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
OTHERWISE["gemma3_text"] = OTHERWISE["gemma2"]
FACTORS: Final = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")
F16: Final = 2.0**-11
"""How far a float16 may be from what it was rounded from, relative to it."""
F16_LEAST: Final = 2.0**-25
"""The same of the smallest, absolutely."""
Q8_0: Final = (0.5 + 127 * F16) / 127
"""The same of a code of Q8_0, relative to the largest entry of its block: half a step, and what the scale's rounding makes
of 127 steps."""


def load_model_file(path: Path, base: Any) -> dict[str, Tensor]:
    """Read a model's tensors as llama.cpp multiplies them, by transformers' names and in its order of rows, in float32.

    Args:
        base: transformers' configuration of it.

    Raises:
        ValueError: it is no such model; the message names the file.
    """
    import gguf

    llama = base.model_type in ("llama", "mistral")
    try:
        found = {}
        for each in gguf.GGUFReader(path).tensors:
            if FACTORS.fullmatch(each.name):
                continue
            name = _name(each.name, base.model_type)
            array = gguf.quants.dequantize(each.data, each.tensor_type).reshape(tuple(each.shape)[::-1])
            value = torch.from_numpy(np.array(array, dtype=np.float32))
            heads = {"q_proj": base.num_attention_heads, "k_proj": base.num_key_value_heads}.get(name.split(".")[-2])
            if llama and heads:
                value = _halves(value, heads)
            if base.model_type.startswith("gemma") and "norm" in name:
                value = value - 1
            found[name] = value
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not the model in GGUF: {str(error).splitlines()[0]}") from None
    return found


def compare_model(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], stored: str) -> None:
    """Hold what `load_model_file` gives against a merged model, each entry within what its format rounds away.

    Args:
        expected: the model's tensors; of a head that is the embedding, without it.
        stored: what matrices are in (`bitlora.gguf.model_file.Stored`).

    Raises:
        ValueError: a tensor is missing, or another; the message names it.
    """
    if other := found.keys() ^ expected.keys():
        raise ValueError(f"{min(other)}: in one of the two alone: the model, and what llama.cpp would read")
    for name, tensor in expected.items():
        meant, read = tensor.detach().cpu().double(), found[name].double()
        if meant.shape != read.shape or not ((read - meant).abs() <= _rounded(meant, stored)).all():
            raise ValueError(f"{name}: what llama.cpp would read is not the merged model")


def _rounded(meant: Tensor, stored: str) -> Tensor:
    """How far each entry may be from what it is meant to be."""
    if meant.ndim == 1 or stored == "f32":  # and of a Gemma's norms one more and less again
        return torch.full_like(meant, 2.0**-23) * (1 + meant.abs())
    if stored == "q8_0" and meant.shape[1] % 32 == 0:
        largest: Tensor = meant.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True).expand(-1, -1, 32).flatten(1)
        return Q8_0 * largest + 127 * F16_LEAST
    return F16 * meant.abs() + F16_LEAST


def _name(name: str, kind: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found is None:
        raise ValueError(f"{name} is of no layer")
    return f"model.layers.{found[1]}.{(LAYERS | OTHERWISE.get(kind, {}))[found[2]]}.{found[3]}"


def _halves(value: Tensor, heads: int) -> Tensor:
    """Rows from llama.cpp's order, neighbours turned together, to transformers', a head's halves turned together."""
    pairs = value.unflatten(0, (heads, -1, 2))
    turned: Tensor = torch.cat([pairs[:, :, 0], pairs[:, :, 1]], 1).flatten(0, 1)
    return turned
