"""An adapter applied: over a base in PEFT's layers, or merged into a model of its own.

    base = AutoModelForCausalLM.from_pretrained(…)
    model = load_packed_adapter(base, "mine-packed")       # what `bitlora export --to packed` wrote

The three forms: packed (`bitlora.adapter.codes_file.save_packed`), the smallest; an ordinary LoRA adapter that stock PEFT
runs (`bitlora.adapter.peft_folder.save_lora_adapter`); and merged (`save_merged`), a model that needs neither PEFT nor this
package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.nn import functional as F

from bitlora.adapter.codes_file import load_packed
from bitlora.adapter.latent import AdapterLatent, AdapterWeights
from bitlora.adapter.peft_layers import BitLoraConfig
from bitlora.base.linears import features, is_linear, plain_weight, same_kind
from bitlora.config.trial import TrialConfig, layer_adapter

if TYPE_CHECKING:
    from peft import PeftModel


def attach_weights(model: Any, weights: AdapterWeights, described: Mapping[str, Any]) -> PeftModel:
    """Put an adapter over a base in PEFT's layers, with the weights that are multiplied in the place of latent ones.

    Args:
        model: a transformers model without adapters.
        described: `bitlora.adapter.peft_folder.adapter_config`'s keys, and `activations`.

    Raises:
        ValueError: see `check_fit`.
    """
    from peft import get_peft_model

    check_fit(model, weights)
    keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "activations", "use_dora")
    config = BitLoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        target_modules=[*weights],
        **{key: described[key] for key in keys if key in described},
    )
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, (a, b, magnitude) in weights.items():
            layer = peft.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
            if magnitude is not None:
                layer.lora_magnitude_vector["default"].weight.copy_(magnitude.flatten())
    return peft.eval()


def load_packed_adapter(model: Any, folder: str | Path) -> PeftModel:
    """Put a packed adapter over its base, in any dtype or in NF4.

    Raises:
        ValueError: see `bitlora.adapter.codes_file.load_packed` and `check_fit`.
    """
    packed = load_packed(folder)
    return attach_weights(model, packed.weights, packed.config)


def merge(model: Any, weights: AdapterWeights, config: TrialConfig, dtype: torch.dtype) -> Any:
    """Add an adapter to its base for good; of a base in NF4 every layer is dequantized first.

    Never into NF4: quantizing the sum again would lose most of the adapter. The sum is taken in float32 (float64) and
    rounded once.

    Args:
        model: a transformers model without adapters, that has not run yet; it is changed.
        weights: the trial's, as they are multiplied (`bitlora.adapter.latent.quantized_weights`).
        dtype: what the merged model is in.

    Returns:
        The model, which is quantized no more.

    Raises:
        ValueError: see `check_fit`.
    """
    check_fit(model, weights)
    for name, linear in [*model.named_modules()]:
        if name not in weights and not isinstance(linear, Linear4bit):
            continue
        quantized = isinstance(linear, Linear4bit)
        weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state) if quantized else plain_weight(linear)
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if name in weights:
            a, b, magnitude = weights[name]
            weight = weight + layer_adapter(config, name).scaling * (b.to(weight) @ a.to(weight))
            if magnitude is not None:
                weight = magnitude.to(weight) * F.normalize(weight, dim=1, eps=torch.finfo(weight.dtype).tiny)
        model.set_submodule(name, same_kind(linear, weight.to(dtype)))
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model.to(dtype)


def save_merged(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a merged model and its tokenizer as transformers loads them, into `folder`, which exists and is empty."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_fit(model: Any, weights: AdapterLatent | AdapterWeights) -> None:
    """Hold an adapter's shapes against its base's.

    Args:
        weights: latent weights, or those that are multiplied.

    Raises:
        ValueError: the base has no such layer, or one of another shape.
    """
    modules = dict(model.named_modules())
    for name, (a, b, *_) in weights.items():
        linear = modules.get(name)
        if linear is None or not is_linear(linear):
            raise ValueError(f"the base has no linear layer {name}: give the base that the adapter was trained over")
        inputs, outputs = features(linear)
        if (inputs, outputs) != (a.shape[1], b.shape[0]):
            found = f"{inputs} inputs and {outputs} outputs"
            raise ValueError(f"{name} of the base has {found}, that of the adapter {a.shape[1]} and {b.shape[0]}")
