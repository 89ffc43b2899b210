"""An adapter as llama.cpp reads it: one GGUF file that is loaded beside its base in GGUF.

    llama-server -m base.gguf --lora t0001-gguf/adapter.gguf

The weights are those that are multiplied, in float32: llama.cpp rounds a layer's inputs to what its weights are stored in,
so a smaller file would be another adapter. It scales what a layer's tensors give by `adapter.lora.alpha` over their own
rank: one alpha for the file, so where layers have several (`alpha_pattern`, rsLoRA with several ranks) B bears the rest.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bitlora.adapter.latent import AdapterWeights
from bitlora.config.trial import TrialConfig, as_written, layer_adapter
from bitlora.gguf.architecture import architecture, pairs, tensor_names, turned_heads

GGUF: Final = "adapter.gguf"


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
    names = tensor_names(found, base.num_hidden_layers)
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
        if found.turns_pairs and (heads := turned_heads(name, base)):
            scaled = scaled[pairs(len(scaled), heads)]
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


def _float32(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ascontiguousarray(tensor.detach().cpu().to(torch.float32).numpy())
