"""A base that is large enough for its memory to be measured."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def larger_folder(tmp_path_factory):
    """A Llama whose passes are megabytes: a resident size is counted in pages, and allocators round."""
    folder = tmp_path_factory.mktemp("base") / "larger"
    config = LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
