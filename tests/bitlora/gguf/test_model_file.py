"""A whole model in GGUF, read again; what llama.cpp would compute otherwise is refused."""

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tiny_models import TOKENS, byte_tokenizer, sentencepiece_like, tiny
from tokenizers import models, normalizers, pre_tokenizers

from bitlora.gguf.architecture import ARCHITECTURES
from bitlora.gguf.model_check import compare_model, load_model_file
from bitlora.gguf.model_file import save_model
from bitlora.gguf.vocabulary import cut_name

STORED = ["f16", "q8_0", "f32"]


def expected(model):
    tied = model.config.tie_word_embeddings
    return {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def written(path, model, stored="f16", tokenizer=None):
    save_model(path, model, tokenizer or byte_tokenizer(), stored, "tiny", "apache-2.0")
    return load_model_file(path, model.config)


def fields(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("stored", STORED)
def test_every_tensor_is_read_back_as_its_format_has_it(kind, stored, tmp_path):
    model = tiny(kind)
    found = written(tmp_path / "m.gguf", model, stored)
    compare_model(found, expected(model), stored)
    apart = max(float((found[name] - value).abs().max()) for name, value in expected(model).items())
    assert (apart < 1e-6) == (stored == "f32")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == stored.upper()  # rows of 96
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert kinds["token_embd.weight"] == stored.upper()


def test_rows_that_no_block_fits_are_in_16_bits(tmp_path):
    model = tiny("llama", intermediate_size=100)
    compare_model(written(tmp_path / "m.gguf", model, "q8_0"), expected(model), "q8_0")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


@pytest.mark.parametrize("stored", STORED)
def test_the_check_sees_every_slip(stored, tmp_path):
    model = tiny("llama")
    found, meant = written(tmp_path / "m.gguf", model, stored), expected(model)
    q = "model.layers.1.self_attn.q_proj.weight"
    other = f"{q}: what llama.cpp would read is not the merged model"
    far = found[q].clone()
    far[3, 5] += 0.02 * far.abs().max()
    for slip in (found[q].roll(1, 0), found[q] * 1.01, far, found[q][:-1]):
        with pytest.raises(ValueError, match=other):
            compare_model({**found, q: slip}, meant, stored)
    with pytest.raises(ValueError, match=f"{q}: in one of the two alone"):
        compare_model({name: value for name, value in found.items() if name != q}, meant, stored)
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"m\.gguf: not the model in GGUF: "):
        load_model_file(tmp_path / "m.gguf", model.config)


def test_what_it_is_stands_in_the_file(tmp_path):
    model = tiny("llama")
    model.generation_config.eos_token_id = [2, 1]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    written(tmp_path / "m.gguf", model, tokenizer=tokenizer)
    found = fields(tmp_path / "m.gguf")
    assert (found["general.architecture"], found["general.name"], found["general.license"]) == (
        "llama",
        "tiny",
        "apache-2.0",
    )
    assert (
        found["llama.block_count"],
        found["llama.attention.head_count_kv"],
        found["llama.rope.dimension_count"],
    ) == (
        2,
        2,
        24,
    )
    assert found["llama.rope.freq_base"] == 1e4
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.tokens"] == TOKENS
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 2)
    assert found["tokenizer.ggml.eot_token_id"] == 1
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (False, False)
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_transformers_reads_the_same_model(tmp_path):
    """Its own reader of GGUF shares nothing with ours: constants, names, rows. A Llama's biases it passes over."""
    rope = {"rope_type": "default", "rope_theta": 321.0}
    model = tiny("llama", rope_parameters=rope, attention_bias=False, mlp_bias=False)
    written(tmp_path / "m.gguf", model, "f32")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    rows = torch.arange(3, 33)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(rows).logits, model(rows).logits, rtol=1e-5, atol=1e-5)


REFUSED = {
    "gpt_neox": ("the base is a gpt_neox; adapters are written for gemma, ", {}),
    "llama": ("hidden_act: gelu: llama.cpp's llama has silu", {"hidden_act": "gelu"}),
    "gemma": ("tie_word_embeddings: false: ", {"tie_word_embeddings": False}),
    "gemma2": ("query_pre_attn_scalar: 20: llama.cpp has 32 there", {"query_pre_attn_scalar": 20}),
    "gemma3_text": (
        "layer_types: llama.cpp's gemma3 sees all from each 6. block alone",
        {"layer_types": ["full_attention"] * 2},
    ),
    "qwen2": (
        "rope_parameters: .*: llama.cpp's qwen2 has no such rotary embedding",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind, tmp_path):
    message, options = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "m.gguf", tiny(kind, **options), byte_tokenizer(), "f16", "tiny")
    assert not list(tmp_path.iterdir())


def test_a_window_that_llama_cpp_has_not_ends_the_context(tmp_path):
    written(tmp_path / "m.gguf", tiny("mistral", sliding_window=96))
    assert fields(tmp_path / "m.gguf")["llama.context_length"] == 96
    written(tmp_path / "m.gguf", tiny("gemma2", sliding_window=96))
    found = fields(tmp_path / "m.gguf")
    assert (found["gemma2.context_length"], found["gemma2.attention.sliding_window"]) == (256, 96)


def test_a_tokenizer_that_cuts_in_no_known_way_is_refused(tmp_path):
    def refused(message, tokenizer):
        with pytest.raises(ValueError, match=message):
            save_model(tmp_path / "m.gguf", tiny("llama"), tokenizer, "f16", "tiny")
        assert not list(tmp_path.iterdir())

    odd = byte_tokenizer()
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    refused("no name is known that llama.cpp has for how the tokenizer cuts a text: .*Punctuation", odd)
    lower = byte_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    refused(r"changes a text first \(Lowercase\)", lower)
    whole = sentencepiece_like(["a b"], normalizers.Replace(" ", "▁"), pre_tokenizers.Whitespace())
    refused("cuts a text by Whitespace", whole)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    refused("of type WordLevel", words)
    with pytest.raises(ValueError, match="no name is known"):
        cut_name({"normalizer": None, "pre_tokenizer": None, "model": {}})


def test_tokens_beyond_the_embedding_and_rows_beyond_the_tokens(tmp_path):
    written(tmp_path / "m.gguf", tiny("llama", vocab_size=len(TOKENS) + 2))
    found = fields(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.tokens"][-2:] == ["[PAD259]", "[PAD260]"]
    assert found["tokenizer.ggml.token_type"][-3:] == [1, 5, 5]
    more = byte_tokenizer()
    more.add_tokens(["<|image|>"], special_tokens=True)
    written(tmp_path / "m.gguf", tiny("llama"), tokenizer=more)
    assert len(fields(tmp_path / "m.gguf")["tokenizer.ggml.tokens"]) == len(TOKENS)


def test_scores_put_together_what_was_learned_first(tmp_path):
    tokenizer = sentencepiece_like(["aab aab aab ab ab"], normalizers.Replace(" ", "▁"), None)
    model = tiny("llama", vocab_size=len(tokenizer))
    written(tmp_path / "m.gguf", model, tokenizer=tokenizer)
    found = fields(tmp_path / "m.gguf")
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    merged = [token for token, score in sorted(scores.items(), key=lambda item: -item[1]) if score < 0]
    assert merged[0] == "ab"  # the commonest pair
    assert np.all(np.diff([scores[token] for token in merged]) < 0)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_space_prefix"]) == ("llama", False)
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"]) == (2, 3, 6)
