"""An adapter applied: over a base in PEFT's layers, or merged into a model of its own.

    base = AutoModelForCausalLM.from_pretrained(…)
    model = load_packed_adapter(base, "mine-packed")       # what `bitlora export --to packed` wrote

The three forms: packed (`bitlora.adapter.codes_file.save_packed`), the smallest; an ordinary LoRA adapter that stock PEFT
runs (`bitlora.adapter.peft_folder.save_lora_adapter`); and merged (`save_merged`), a model that needs neither PEFT nor this
package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitlora.adapter.codes_file import load_packed
from bitlora.adapter.latent import AdapterLatent, AdapterWeights, Weights
from bitlora.adapter.peft_folder import tensor_place
from bitlora.adapter.peft_layers import BitLoraConfig
from bitlora.base.experts import ExpertWeights, named_experts
from bitlora.base.linears import features, is_linear, is_quantized, same_kind, weight_values
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
    from peft import LoraConfig, get_peft_model

    check_fit(model, weights)
    experts = named_experts(model).keys() & weights.keys()
    keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora")
    options = {key: described[key] for key in keys if key in described}
    options |= {"task_type": "CAUSAL_LM", "inference_mode": True}
    options["target_modules"] = [name for name in weights if name not in experts]
    if experts:  # beside which there are no 8-bit activations
        with _unknown_to_peft(model):
            peft = get_peft_model(model, LoraConfig(target_parameters=[*experts], **options))
    else:
        peft = get_peft_model(model, BitLoraConfig(activations=described.get("activations", "full"), **options))
    put_weights(peft, weights, experts)
    return peft.eval()


def put_weights(peft: PeftModel, weights: AdapterWeights, experts: Collection[str] = ()) -> None:
    """Put other weights of the same shapes into an adapter's layers (`attach_weights`).

    Args:
        experts: those of the layers that are routed experts'.
    """
    with torch.no_grad():
        for name, (a, b, magnitude) in weights.items():
            layer = peft.base_model.model.get_submodule(tensor_place(name, experts))
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
            if magnitude is not None:
                layer.lora_magnitude_vector["default"].weight.copy_(magnitude.flatten())


@contextlib.contextmanager
def _unknown_to_peft(model: Any) -> Iterator[None]:
    """Inside, PEFT does not know what kind of model it is. Otherwise (0.21.2) it takes every `gate_proj`, `up_proj` and
    `down_proj` that a list names for the experts', in the layout of an earlier transformers."""
    kind = model.config.model_type
    model.config.model_type = ""
    try:
        yield
    finally:
        model.config.model_type = kind


def load_packed_adapter(model: Any, folder: str | Path) -> PeftModel:
    """Put a packed adapter over its base, in any dtype, in NF4 or in 8 bits.

    Raises:
        ValueError: see `bitlora.adapter.codes_file.load_packed` and `check_fit`.
    """
    packed = load_packed(folder)
    return attach_weights(model, packed.weights, packed.config)


def merge(model: Any, weights: AdapterWeights, config: TrialConfig, dtype: torch.dtype) -> Any:
    """Add an adapter to its base for good; of a quantized base every layer is dequantized first.

    Never into codes: quantizing the sum again would lose most of the adapter. The sum is taken in float32 (float64) and
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
    for name, layer in named_experts(model).items():
        if name in weights:
            layer.set_weight(_with_experts(layer, weights[name], layer_adapter(config, name).scaling).to(dtype))
    for name, linear in [*model.named_modules()]:
        if name not in weights and not (is_linear(linear) and is_quantized(linear)):
            continue
        weight = weight_values(linear)
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


def _with_experts(layer: ExpertWeights, added: Weights, scaling: float) -> Tensor:
    """The weights of routed experts (experts, out, in) with their adapters, in float32 or float64."""
    weight = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
    a, b = added.a.to(weight), added.b.to(weight)
    each_a = a.unflatten(0, (layer.experts, -1))
    each_b = b.unflatten(1, (-1, layer.experts)).movedim(2, 0)
    return torch.baddbmm(weight, each_b, each_a, alpha=scaling)


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
    experts = named_experts(model)
    for name, (a, b, *_) in weights.items():
        if (layer := experts.get(name)) is not None:
            if (layer.in_features, layer.out_features) != (a.shape[1], b.shape[0]) or len(a) % layer.experts:
                raise ValueError(f"{name} of the base has other experts than that of the adapter")
            continue
        linear = modules.get(name)
        if linear is None or not is_linear(linear):
            raise ValueError(f"the base has no linear layer {name}: give the base that the adapter was trained over")
        inputs, outputs = features(linear)
        if (inputs, outputs) != (a.shape[1], b.shape[0]):
            found = f"{inputs} inputs and {outputs} outputs"
            raise ValueError(f"{name} of the base has {found}, that of the adapter {a.shape[1]} and {b.shape[0]}")
