"""An adapter applied: over a base in PEFT's layers, or merged into a model of its own.

    base = AutoModelForCausalLM.from_pretrained(…)
    model = load_packed_adapter(base, "mine-packed")       # what `bitlora export --to packed` wrote

The three forms: packed (`bitlora.adapter.codes_file.save_packed`), the smallest; an ordinary LoRA adapter that stock PEFT
runs (`bitlora.adapter.peft_folder.save_lora_adapter`); and merged (`save_merged`), a model that needs neither PEFT nor this
package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn

from bitlora.adapter.codes_file import load_packed
from bitlora.adapter.latent import AdapterLatent, AdapterWeights
from bitlora.adapter.peft_layers import BitLoraConfig

if TYPE_CHECKING:
    from peft import PeftModel

    from bitlora.config.sections import Activations


def attach_weights(
    model: Any, weights: AdapterWeights, alpha: float, rslora: bool = False, activations: Activations = "full"
) -> PeftModel:
    """Put an adapter over a base in PEFT's layers, with the weights that are multiplied in the place of latent ones.

    Args:
        model: a transformers model without adapters.

    Raises:
        ValueError: see `check_fit`.
    """
    from peft import get_peft_model

    check_fit(model, weights)
    config = BitLoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=next(iter(weights.values()))[0].shape[0],
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=[*weights],
        activations=activations,
    )
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, (a, b) in weights.items():
            layer = peft.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    return peft.eval()


def load_packed_adapter(model: Any, folder: str | Path) -> PeftModel:
    """Put a packed adapter over its base, in any dtype or in NF4.

    Raises:
        ValueError: see `bitlora.adapter.codes_file.load_packed` and `check_fit`.
    """
    packed = load_packed(folder)
    c = packed.config
    return attach_weights(model, packed.weights, c["lora_alpha"], c["use_rslora"], c["activations"])


def merge(model: Any, weights: AdapterWeights, scaling: float, dtype: torch.dtype) -> Any:
    """Add an adapter to its base for good; of a base in NF4 every layer is dequantized first.

    Never into NF4: quantizing the sum again would lose most of the adapter. The sum is taken in float32 (float64) and
    rounded once.

    Args:
        model: a transformers model without adapters, that has not run yet; it is changed.
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
        weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state) if quantized else linear.weight.data
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if name in weights:
            a, b = (part.to(weight) for part in weights[name])
            weight = weight + scaling * (b @ a)
        plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        plain.bias = linear.bias
        model.set_submodule(name, plain)
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
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"the base has no linear layer {name}: give the base that the adapter was trained over")
        if (linear.in_features, linear.out_features) != (a.shape[1], b.shape[0]):
            found = f"{linear.in_features} inputs and {linear.out_features} outputs"
            raise ValueError(f"{name} of the base has {found}, that of the adapter {a.shape[1]} and {b.shape[0]}")
