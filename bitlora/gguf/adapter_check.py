"""What llama.cpp does with an adapter's GGUF file, worked out from the file alone: it shares neither names nor the order of
rows nor scales with `bitlora.gguf.adapter_file`, which writes it, so that a slip there is not made here again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bitlora.adapter.latent import AdapterWeights, Weights
from bitlora.config.trial import TrialConfig, layer_adapter

TENSORS: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""How a block's layers are called in GGUF."""
LLAMAS: Final = ("llama", "mistral")
"""transformers' `model_type` of what is a llama in llama.cpp; the others have their own names there."""
ROUNDED: Final = 2.0**-22
"""How far a scaled B may be from the adapter's, relative to it: alpha, its quotient by the rank and B are float32."""


def load_gguf(path: Path, layers: Iterable[str], base: Any) -> dict[str, Weights]:
    """Read an adapter as llama.cpp does, into transformers' names and order of rows.

    Args:
        layers: the layers it is said to be on.
        base: transformers' configuration of the base.

    Returns:
        Layer -> A (R, I) and B (O, R) with the layer's whole scale in it; float32.

    Raises:
        ValueError: it is no such adapter; the message names the file.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {each.name: np.array(each.data) for each in reader.tensors}
        if (fields["general.type"], fields["adapter.type"]) != ("adapter", "lora"):
            raise ValueError("general.type or adapter.type is another")
        llama = base.model_type in LLAMAS
        if fields["general.architecture"] != ("llama" if llama else base.model_type.removesuffix("_text")):
            raise ValueError(f"general.architecture is {fields['general.architecture']}")
        alpha = np.float32(fields["adapter.lora.alpha"])
        weights = {}
        for layer in layers:
            block, kind = _parts(layer)
            name = f"blk.{block}.{TENSORS[kind]}.weight"
            a, b = tensors.pop(f"{name}.lora_a"), tensors.pop(f"{name}.lora_b")
            if llama:
                b = _halves(b, kind, base)
            scale = alpha / np.float32(b.shape[1]) if alpha else np.float32(1)
            weights[layer] = Weights(torch.from_numpy(a), torch.from_numpy(scale * b))
        if tensors:
            raise ValueError(f"{min(tensors)} is of no layer")
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not the adapter in GGUF: {str(error).splitlines()[0]}") from None
    return weights


def compare_gguf(found: AdapterWeights, expected: AdapterWeights, config: TrialConfig) -> None:
    """Hold what `load_gguf` gives against the adapter: A to the bit, B as float32 rounds.

    Raises:
        ValueError: a layer is another; the message names it.
    """
    for layer, (a, b, _) in expected.items():
        read = found[layer]
        scaled = layer_adapter(config, layer).scaling * b.cpu().double()
        near = (read.b.double() - scaled).abs() <= ROUNDED * scaled.abs() + torch.finfo(torch.float32).tiny
        if not (torch.equal(read.a, a.cpu().float()) and near.all()):
            raise ValueError(f"{layer}: what llama.cpp would read is not the adapter")


def _parts(layer: str) -> tuple[int, str]:
    """The number of a layer's block, and its name there."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", layer)
    if found is None:
        raise ValueError(f"{layer} is in no block")
    return int(found[1]), found[2]


def _halves(b: np.ndarray[Any, Any], kind: str, base: Any) -> np.ndarray[Any, Any]:
    """B's rows from llama.cpp's order, neighbours turned together, to transformers', a head's halves turned together."""
    heads = {"self_attn.q_proj": base.num_attention_heads, "self_attn.k_proj": base.num_key_value_heads}.get(kind)
    if heads is None:
        return b
    pairs = b.reshape(heads, -1, 2, b.shape[1])
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(b.shape)
