"""An adapter as llama.cpp reads it: one GGUF file that is loaded beside its base in GGUF.

    llama-server -m base.gguf --lora t0001-gguf/adapter.gguf

The weights are those that are multiplied, in float32: llama.cpp rounds a layer's inputs to what its weights are stored in,
so a smaller file would be another adapter. It scales what a layer's tensors give by `adapter.lora.alpha` over their own
rank: one alpha for the file, so where layers have several (`alpha_pattern`, rsLoRA with several ranks) B bears the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bitlora.adapter.latent import AdapterWeights
from bitlora.config.trial import TrialConfig, as_written, layer_adapter

GGUF: Final = "adapter.gguf"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp makes of a kind of transformers' models."""

    name: str
    """llama.cpp's; a key of `gguf.MODEL_ARCH` in capitals."""
    turns_pairs: bool = False
    """It turns neighbouring rows of q and k by their positions, where transformers turns the halves of a head: so the rows
    lie in another order."""


ARCHITECTURES: Final = {
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2"),
    "gemma3_text": Architecture("gemma3"),
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
        ValueError: adapters of such a base are not written for llama.cpp.
    """
    found = ARCHITECTURES.get(base.model_type)
    if found is None:
        raise ValueError(f"the base is a {base.model_type}; adapters are written for {', '.join(ARCHITECTURES)}")
    return found


def save_gguf(path: Path, weights: AdapterWeights, config: TrialConfig, base: Any) -> None:
    """Write an adapter for llama.cpp.

    Args:
        weights: the trial's, as they are multiplied (`bitlora.adapter.latent.quantized_weights`).
        base: transformers' configuration of the base.

    Raises:
        ValueError: llama.cpp has no such base, no such layer or no such inputs of it; nothing is written.
    """
    import gguf

    if config.activations != "full":
        raise ValueError(f"activations: {config.activations}: llama.cpp would run it on full activations")
    if config.dora:
        raise ValueError("dora: llama.cpp has no magnitudes: it would add A and B to the base as they are")
    found = architecture(base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[found.name.upper()], base.num_hidden_layers)
    tensors = {name: names.get_name(name) for name in weights}
    if unknown := next((name for name, tensor in tensors.items() if tensor is None), None):
        raise ValueError(f"llama.cpp's {found.name} has no layer for {unknown}")
    alphas = {name: _alpha(config, name) for name in weights}
    alpha = Counter(alphas.values()).most_common(1)[0][0]

    writer = gguf.GGUFWriter(path, found.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, (a, b, _) in weights.items():
        scaled = b.double().cpu() * (alphas[name] / alpha)
        if found.turns_pairs and (heads := _heads(name, base)):
            scaled = scaled[_pairs(len(scaled), heads)]
        writer.add_tensor(f"{tensors[name]}.weight.lora_a", _float32(a))
        writer.add_tensor(f"{tensors[name]}.weight.lora_b", _float32(scaled))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alpha(config: TrialConfig, name: str) -> float:
    """What over the layer's rank is its scale."""
    layer = layer_adapter(as_written(config), name)
    return layer.scaling * layer.rank


def _heads(name: str, base: Any) -> int:
    """Heads in the rows of a layer that is turned by positions; of others 0."""
    kind = name.rsplit(".", 1)[-1]
    return int({"q_proj": base.num_attention_heads, "k_proj": base.num_key_value_heads}.get(kind, 0))


def _pairs(rows: int, heads: int) -> torch.Tensor:
    """Which of transformers' rows lies where in GGUF: a head's first, the first of its second half, its second, …"""
    width = rows // heads
    head, place = torch.arange(rows) // width, torch.arange(rows) % width
    return head * width + place % 2 * (width // 2) + place // 2


def _float32(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ascontiguousarray(tensor.detach().cpu().to(torch.float32).numpy())
