"""Adapters handed on: over a base in PEFT's layers, merged into a model of its own, and the loss by which either is held.

    base = AutoModelForCausalLM.from_pretrained(…)
    model = load_packed_adapter(base, "mine-packed")       # what `bitlora export --to packed` wrote

The three forms: packed (`bitlora.packing.save_packed`), the smallest; an ordinary LoRA adapter that stock PEFT runs
(`bitlora.checkpoint.save_baked_adapter`); and merged (`save_merged`), a model that needs neither PEFT nor this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.packing import load_packed
from bitlora.peft_adapter import BitLoraConfig

if TYPE_CHECKING:
    from peft import PeftModel

    from bitlora.config import Activations
    from bitlora.data import Rows

PASS_TOKENS: Final = 1024
"""Tokens of one forward pass of `example_losses`, padding included, at most (or one row)."""

Weights = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name -> the quantized A (rank, in) and B (out, rank)."""


def attach_weights(
    model: Any, weights: Weights, alpha: float, rslora: bool = False, activations: Activations = "full"
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
        ValueError: see `bitlora.packing.load_packed` and `check_fit`.
    """
    packed = load_packed(folder)
    c = packed.config
    return attach_weights(model, packed.weights, c["lora_alpha"], c["use_rslora"], c["activations"])


def merge(model: Any, weights: Weights, scaling: float, dtype: torch.dtype) -> Any:
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


def example_losses(model: Any, rows: Rows) -> list[float]:
    """The loss of each row, in nats, summed over its completion tokens: a plain loop over padded batches.

    It shares no code with the engine, so that it can tell what the engine had in mind from what was written.

    Args:
        model: a causal LM, with or without PEFT's layers.
    """
    lengths = rows.lengths.tolist()
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    model.eval()
    while order:
        longest = lengths[order[0]]
        count = max(1, PASS_TOKENS // longest)
        chosen, order = order[:count], order[count:]
        tokens = torch.zeros(len(chosen), longest, dtype=torch.long)
        learn = torch.zeros_like(tokens, dtype=torch.bool)
        for place, row in enumerate(chosen):
            cut = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
            tokens[place, : lengths[row]] = torch.from_numpy(rows.tokens[cut])
            learn[place, : lengths[row]] = torch.from_numpy(rows.learn[cut])
        mask = torch.arange(longest) < torch.tensor([lengths[row] for row in chosen])[:, None]
        tokens, learn, mask = (part.to(model.device) for part in (tokens, learn, mask.long()))
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        high = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(high.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(chosen), -1)
        for row, loss in zip(chosen, (each.double() * learn[:, 1:]).sum(1).tolist(), strict=True):
            losses[row] = loss
    return losses


def eval_loss(model: Any, rows: Rows) -> float:
    """Nats per completion token over `rows`: the ratio of the sums."""
    return math.fsum(example_losses(model, rows)) / int(rows.learn.sum())


def check_fit(model: Any, weights: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Hold an adapter's shapes against its base's.

    Args:
        weights: layer name -> A (rank, in), B (out, rank), and what else there is.

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
