"""Exports for llama.cpp, run by llama.cpp itself."""

import numpy as np
import pytest
import torch
import transformers
from adapters import trial
from llama_cpp import Job, installed, scored, write_base
from tokenizers import pre_tokenizers

from bitlora.adapter.apply import attach_weights
from bitlora.adapter.gguf_file import ARCHITECTURES, save_gguf
from bitlora.adapter.latent import Latent, quantized_weights
from bitlora.adapter.peft_folder import adapter_config
from bitlora.base.describe import block_linears
from bitlora.base.linears import features
from bitlora.config.trial import layer_adapter

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN = {
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "attn_implementation": "eager"},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "llama": {"head_dim": 24},
    "qwen3": {"head_dim": 32},
}
"""What a kind's configuration has besides; heads that are not hidden size over heads too."""
NEAR = 1e-4
"""Between two sums of float32 in other orders, in nats of a token; measured: at most 2e-5."""
NEAR_GEMMA = 4e-3
"""llama.cpp looks a Gemma's activation up in a table of 16 bits; measured: at most 1.3e-3."""
TRIALS = [
    {"quantizer": "none", "scaling": "rslora"},
    {"quantizer": "ternary", "granularity": "component", "rank_pattern": "q_proj: 3, down_proj: 2"},
    {
        "quantizer": "binary",
        "scaling": "rslora",
        "rank_pattern": "o_proj: 2",
        "alpha_pattern": "k_proj: 9.5, up_proj: 2",
    },
]


def tiny(kind):
    """A random model of a kind; its norms are not all alike, so that a norm in the wrong place is seen."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES, **OWN.get(kind, {}))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (1.0 if "norm" in name else 0.5))
    return model


def adapter(model, config, size=0.1):
    generator = torch.Generator().manual_seed(1)
    latent = {}
    for name, linear in block_linears(model).items():
        inputs, outputs = features(linear)
        rank = layer_adapter(config, name).rank
        a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
        latent[name] = Latent(size * a, size * b)
    return quantized_weights(latent, config)


@torch.no_grad()
def logits(model, rows):
    return [model(torch.tensor([row])).logits[0, :-1].double() for row in rows]


def of_next(found, row):
    return found.log_softmax(-1)[torch.arange(len(row) - 1), torch.tensor(row[1:])].numpy()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_llama_cpp_says_what_the_adapter_says(kind, tmp_path):
    """Token by token, with the adapter and without; in float32 all of it."""
    installed()
    rows = torch.randint(3, len(TOKENS), (20, 16), generator=torch.Generator().manual_seed(3)).tolist()
    base = write_base(tmp_path / "base.gguf", tiny(kind), TOKENS)
    jobs, expected = [Job(base, None, rows)], [logits(tiny(kind), rows)]
    for number, varied in enumerate(TRIALS):
        config = trial(**{"rank": 6, "alpha": 24.5, **varied})
        model = tiny(kind)
        weights = adapter(model, config)
        save_gguf(tmp_path / f"{number}.gguf", weights, config, model.config)
        jobs.append(Job(base, tmp_path / f"{number}.gguf", rows))
        expected.append(logits(attach_weights(model, weights, adapter_config(config, "base", list(weights))), rows))
    found = scored(jobs, tmp_path)
    near = NEAR_GEMMA if kind.startswith("gemma") else NEAR
    for number, (job, ours) in enumerate(zip(found, expected, strict=True)):
        for one, each, row, alone in zip(job, ours, rows, expected[0], strict=True):
            mine = of_next(each, row)
            np.testing.assert_allclose(one.log_probabilities, mine, rtol=0, atol=near)
            top = each.topk(2, -1)
            clear = (top.values[:, 0] - top.values[:, 1]).numpy() > 2 * near
            assert clear.mean() > 0.5
            assert (one.likeliest[clear] == top.indices[:, 0].numpy()[clear]).all()
            assert number == 0 or abs(mine - of_next(alone, row)).mean() > 25 * near  # the adapter does something
