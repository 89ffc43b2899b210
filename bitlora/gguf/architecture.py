"""The bases that llama.cpp knows by other names, and the order in which it has the rows of their attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp makes of a kind of transformers' models."""

    name: str
    """llama.cpp's; a key of `gguf.MODEL_ARCH` in capitals."""
    turns_pairs: bool = False
    """It turns neighbouring rows of q and k by their positions, where transformers turns the halves of a head: so the rows
    lie in another order."""
    activation: str = "silu"
    """The one that llama.cpp has in its feed-forward layers, by transformers' name."""
    window: int = 0
    """Of so many blocks the last sees all that is before it, the others a window; 0: all see all."""
    adds_one: bool = False
    """A norm's weight is kept less one in transformers."""
    tied: bool = False
    """The head is the embedding, whatever else is in the file."""


ARCHITECTURES: Final = {
    "gemma": Architecture("gemma", activation="gelu_pytorch_tanh", adds_one=True, tied=True),
    "gemma2": Architecture("gemma2", activation="gelu_pytorch_tanh", window=2, adds_one=True, tied=True),
    "gemma3_text": Architecture("gemma3", activation="gelu_pytorch_tanh", window=6, adds_one=True, tied=True),
    "llama": Architecture("llama", turns_pairs=True),
    "mistral": Architecture("llama", turns_pairs=True),
    "phi3": Architecture("phi3"),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
"""By transformers' `model_type`."""


def architecture(base: Any) -> Architecture:
    """What llama.cpp calls a base.

    Args:
        base: transformers' configuration of it.

    Raises:
        ValueError: such a base is not written for llama.cpp.
    """
    found = ARCHITECTURES.get(base.model_type)
    if found is None:
        raise ValueError(f"the base is a {base.model_type}; adapters are written for {', '.join(ARCHITECTURES)}")
    return found


def tensor_names(found: Architecture, blocks: int) -> Any:
    """gguf's map from transformers' names of modules to its own."""
    import gguf

    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[found.name.upper()], blocks)


def turned_heads(name: str, base: Any) -> int:
    """Heads in the rows of a layer that is turned by positions; of others 0."""
    kind = name.rsplit(".", 1)[-1]
    return int({"q_proj": base.num_attention_heads, "k_proj": base.num_key_value_heads}.get(kind, 0))


def pairs(rows: int, heads: int) -> torch.Tensor:
    """Which of transformers' rows lies where in GGUF: a head's first, the first of its second half, its second, …"""
    width = rows // heads
    head, place = torch.arange(rows) // width, torch.arange(rows) % width
    return head * width + place % 2 * (width // 2) + place // 2


def head_width(base: Any) -> int:
    """Rows of one head."""
    return int(getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads)
