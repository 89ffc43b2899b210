"""A trial's adapter on disk: latent weights in PEFT's layout.

Stock PEFT reads the adapter of a full-precision trial as the LoRA adapter it is. Latent weights of a quantized one would
be silently wrong there, so its configuration names a type that stock PEFT does not know and refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from bitlora.config import TrialConfig

PEFT_TYPE: Final = "BITLORA"
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


def adapter_config(config: TrialConfig, base_model: str, targets: list[str]) -> dict[str, Any]:
    """The adapter's configuration in PEFT's keys, with the quantizer and the activations beside them."""
    plain = config.quantizer == "none" and config.activations == "full"
    described = {
        "peft_type": "LORA" if plain else PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.scaling == "rslora",
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    if not plain:
        described |= {"quantizer": config.quantizer, "activations": config.activations}
    return described


def save_adapter(
    folder: Path, latent: Mapping[str, tuple[Tensor, Tensor]], config: TrialConfig, base_model: str
) -> None:
    """Write the latent weights into `folder`, which exists and is empty (`bitlora.record.write_folder`).

    Args:
        latent: layer name -> (A (rank, in), B (out, rank)).
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, (a, b) in latent.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(adapter_config(config, base_model, list(latent)), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
