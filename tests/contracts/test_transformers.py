"""What the product takes from transformers that nobody promised it: how attention is called, and what a loaded model is.

Models here are a few blocks of 32 numbers wide. A failure shows the docstring of its test, which says who relies on what
is gone.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}


def _model(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


# ---- attention


class _Attention:
    """Causal attention of each of two rows over itself, as `bitlora.forward.attention.row_attention`; keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, tuple[torch.Size, ...], float | None, dict[str, Any]]] = []
        self.lengths = [3, 4]

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        self.calls.append((module, (query.shape, key.shape, value.shape), scaling, options))
        out = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            for q, k, v in zip(*(part.split(self.lengths, 2) for part in (query, key, value)), strict=True)
        ]
        return torch.cat(out, 2).transpose(1, 2), None


@pytest.fixture
def attention() -> _Attention:
    made = _Attention()
    AttentionInterface.register("contract", lambda *args, **named: made(*args, **named))
    return made


def _packed(model: Any, *rows: Tensor, **options: Any) -> Tensor:
    """The logits of rows behind each other in one sequence."""
    model.set_attn_implementation("contract")
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=torch.cat(rows)[None], position_ids=positions, use_cache=False, **options
        ).logits
    return logits[0]


ROWS = torch.arange(3), torch.arange(5, 9)


@pytest.mark.parametrize(
    ("config", "kv_heads"), [(LlamaConfig(**GROUPED), 2), (GPTNeoXConfig(**SMALL, hidden_dropout=0.0), 4)]
)
def test_attention_is_called_with_its_module_and_whole_heads(config: Any, kv_heads: int, attention: _Attention) -> None:
    """bitlora.forward.attention.row_attention: a function that is registered gets (module, query, key, value, mask), each
    (1, heads, T, width) with keys of fewer heads as they are, and `scaling=`; it gives (1, T, heads, width)."""
    model = _model(config)
    _packed(model, *ROWS)
    assert len(attention.calls) == SMALL["num_hidden_layers"]
    for module, shapes, scaling, _ in attention.calls:
        assert module in set(model.modules())
        assert shapes == ((1, 4, 7, 8), (1, kv_heads, 7, 8), (1, kv_heads, 7, 8))
        assert scaling == pytest.approx(8**-0.5)


def test_rows_meet_in_attention_alone(attention: _Attention) -> None:
    """bitlora.forward.attention: rows behind each other in one sequence, each with positions from 0, are what each is by
    itself in stock attention, if attention alone keeps them apart; transformers puts no mask of its own in the way."""
    model = _model(LlamaConfig(**GROUPED))
    with torch.no_grad():
        alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in ROWS]
    torch.testing.assert_close(_packed(model, *ROWS), torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (MistralConfig(**GROUPED, sliding_window=4), {"sliding_window"}),
        (Gemma2Config(**GROUPED, sliding_window=4), {"sliding_window", "softcap"}),
        (
            GptOssConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1, sliding_window=4),
            {"sliding_window", "s_aux"},
        ),
    ],
    ids=["mistral", "gemma2", "gpt-oss"],
)
def test_what_attention_may_be_asked_beside(config: Any, options: set[str], attention: _Attention) -> None:
    """bitlora.forward.attention.row_attention: refuses windows, caps and sinks by these names of keywords. Under another
    name they would be overlooked, and the base would compute something else."""
    _packed(_model(config), *ROWS)
    asked = attention.calls[0][3]
    assert {name for name in ("sliding_window", "softcap", "s_aux") if asked.get(name) is not None} == options
    known = {"sliding_window", "softcap", "s_aux", "dropout", "position_ids", "use_cache", "output_router_logits"}
    assert not asked.keys() - known, "a new keyword: does it change what attention is?"


# ---- calling a model


def test_the_head_runs_where_it_is_told_to(attention: _Attention) -> None:
    """bitlora.forward.head.Head: `logits_to_keep` takes a tensor of places, of none too; elsewhere the head, most of the
    memory, computes nothing. And a model's forward computes no more than the head where its decoder gives an
    output that was made elsewhere."""
    model = _model(LlamaConfig(**GROUPED))
    everywhere = _packed(model, *ROWS)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda head, given, out: seen.append(given[0].shape[1]))
    places = torch.tensor([1, 5])
    torch.testing.assert_close(_packed(model, *ROWS, logits_to_keep=places), everywhere[places])
    _packed(model, *ROWS, logits_to_keep=places[:0])
    assert seen == [2, 0]
    outputs: list[Any] = []
    decoder = model.get_decoder()
    decoder.register_forward_hook(lambda module, given, out: outputs.append(out))
    _packed(model, *ROWS)
    hidden = outputs[0].last_hidden_state
    decoder.forward = lambda *args, **kwargs: type(outputs[0])(last_hidden_state=hidden[:, places])
    torch.testing.assert_close(model(inputs_embeds=hidden[:, places], use_cache=False).logits[0], everywhere[places])


@pytest.mark.parametrize("config", [LlamaConfig(**GROUPED), Gemma2Config(**GROUPED), GPTNeoXConfig(**SMALL)])
def test_the_vocabulary_of_a_configuration(config: Any) -> None:
    """bitlora.base.info, sweeps.pack.loop: `config.get_text_config().vocab_size`; of it hangs what counts as diverged."""
    assert config.get_text_config().vocab_size == 32


def test_blocks_are_numbered_and_the_head_is_not() -> None:
    """bitlora.base.info.block_linears: the linear layers that get adapters are those with a number in their name; a module
    is replaced by `set_submodule`; and a model needs no memory on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED))
    assert all(each.is_meta for each in model.parameters())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    numbered = [name for name in names if any(part.isdigit() for part in name.split("."))]
    assert len(numbered) == 14
    assert [*{*names} - {*numbered}] == ["lm_head"]
    model.set_submodule("model.layers.0.mlp.up_proj", nn.Identity())
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Identity)


def test_checkpointing_is_on_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitlora.forward.inject: `gradient_checkpointing_enable` hands its keywords on to `torch.utils.checkpoint`, and blocks
    are recomputed only where the model is in training mode. transformers 6 knows it as
    `activation_checkpointing_enable(activation_checkpointing_kwargs=…)`."""
    entered: list[str] = []

    @contextlib.contextmanager
    def entering(which: str) -> Iterator[None]:
        entered.append(which)
        yield

    model = _model(LlamaConfig(**GROUPED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: (entering("forward"), entering("recompute"))}
        )
    model.config.use_cache = False
    ids = torch.arange(5)[None]
    plain = model(input_ids=ids).logits.sum()
    plain.backward()
    assert entered == []
    grads = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    model.train()
    model(input_ids=ids).logits.sum().backward()
    assert entered == ["forward"] * 2 + ["recompute"] * 2
    for each, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(each.grad, grad)


# ---- loading and saving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    _model(LlamaConfig(**{**GROUPED, "hidden_size": 64})).to(torch.bfloat16).save_pretrained(path)
    return path


def test_a_configuration_keeps_the_dtype_of_its_weights(folder: Path) -> None:
    """sweeps.cli.exports.forms: merges into the dtype that the base is stored in: `config.dtype`, a torch.dtype."""
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16


def test_a_folder_without_a_model_is_an_error_of_these_kinds(tmp_path: Path) -> None:
    """bitlora.base.describe: turns OSError, ValueError and KeyError of loading into one line for the user."""
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises((OSError, ValueError, KeyError), match="no such model"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises((OSError, ValueError, KeyError)):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises((OSError, ValueError)):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_base_in_nf4(folder: Path, tmp_path: Path) -> None:
    """bitlora.base.load.load_model: blocks become `Linear4bit` (the head does not) in the dtype that is asked for, on the
    CPU. bitlora.adapter.apply.merge: without `hf_quantizer.remove_quantization_config(model)` a model that is plain again
    would be saved, and loaded, as a quantized one."""
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=four_bits
    )
    up = model.model.layers[0].mlp.up_proj
    assert type(up) is Linear4bit
    assert (up.compute_dtype, up.weight.quant_state.quant_type) == (torch.float32, "nf4")
    assert type(model.lm_head) is nn.Linear
    assert model.model.norm.weight.dtype == torch.float32
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, Linear4bit):
            model.set_submodule(name, nn.Linear(layer.in_features, layer.out_features, bias=False))
    model.hf_quantizer.remove_quantization_config(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert getattr(again.config, "quantization_config", None) is None
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_a_model_out_of_a_gguf_file(tmp_path: Path) -> None:
    """bitlora.base.locate._convert: a model that was read from GGUF has plain weights but calls itself quantized, in these
    three places; cleared, it is saved as the plain model it is. Where one is gone, `del` fails: look at `_convert`."""
    _write_gguf(tmp_path / "tiny.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert model.is_quantized
    assert model.hf_quantizer is not None
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert getattr(again.config, "quantization_config", None) is None
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)


def _write_gguf(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(32)
    shapes = {"token_embd": (32, 32), "output_norm": (32,), "output": (32, 32), "blk.0.attn_norm": (32,)}
    shapes |= {f"blk.0.attn_{which}": (32, 32) for which in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{which}": (32, 32) for which in ("gate", "up", "down")} | {"blk.0.ffn_norm": (32,)}
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- tokenizers

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = [{"role": "user", "content": "1+1="}]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", chat_template=TEMPLATE)


def rendered(template: str, turns: Any = TURNS, **how: Any) -> Any:
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template([turns], None, chat_template=template, **how)


def test_a_conversation_as_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """bitlora.data.chat: `get_chat_template()` as text, which may be changed; `render_jinja_template` with it, with or
    without the generation prompt; a macro in front of it takes the place of `strftime_now`."""
    template = tokenizer.get_chat_template()
    assert template == TEMPLATE
    assert [rendered(template, add_generation_prompt=prompt)[0] for prompt in (False, True)] == [
        ["[user]1+1="],
        ["[user]1+1=[assistant]"],
    ]
    fixed = "{% macro strftime_now(form) %}then{% endmacro %}" + "{{ strftime_now('%d %b %Y') }}"
    assert rendered(fixed)[0] == ["then"]
    assert rendered("{{ raise_exception('') if strftime_now('%Y') == 'then' else 'now' }}")[0] == ["now"]


def test_what_a_template_marks_as_generated() -> None:
    """bitlora.data.chat.ChatTemplate.marked: where what is between `generation` and its end stands, in characters."""
    template = "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    turns = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "two"}]
    texts, spans = rendered(template, turns, return_assistant_tokens_mask=True)
    assert (texts, [list(map(tuple, each)) for each in spans]) == (["[é][two]"], [[(1, 2), (4, 7)]])


def test_null_content_and_reasoning_reach_a_template() -> None:
    """bitlora.data.chat: a null content is null for `render_jinja_template` (for `apply_chat_template` it is not there),
    and `reasoning_content` is `thinking` too."""
    template = "{{ messages[0].content is none }}{{ messages[0].thinking }}"
    assert rendered(template, [{"role": "assistant", "content": None, "reasoning_content": "so"}])[0] == ["Trueso"]


def test_a_template_that_refuses() -> None:
    """bitlora.data.chat._refusals: a template's own refusal is a jinja2.TemplateError."""
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="no system"):
        rendered("{{ raise_exception('no system') }}")


def test_where_tokens_stand(tokenizer: PreTrainedTokenizerFast) -> None:
    """bitlora.data.tokens: offsets in characters of a batch of texts, without tokens that the text does not have; and which
    tokens were added, some of which end a turn. A call leaves the backend so that it neither cuts nor pads."""
    assert tokenizer.is_fast
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(1)
    backend.enable_padding(length=9)
    assert len(tokenizer("ab<eos>", add_special_tokens=False).input_ids) == 3
    first, second = backend.encode_batch(["ab<eos>", "é"], add_special_tokens=False)
    assert first.offsets == [(0, 1), (1, 2), (2, 7)]
    assert second.offsets == [(0, 1), (0, 1)]
    assert [len(first.ids), len(second.ids)] == [3, 2]
    assert list(tokenizer.get_added_vocab()) == ["<eos>"]
    assert tokenizer("a").input_ids[0] != tokenizer.eos_token_id


def test_experts_are_computed_by_what_is_registered() -> None:
    """bitlora.forward.routed.experts, bitlora.base.experts: given all tokens, by a module that says how it is made."""
    calls: list[Any] = []
    ALL_EXPERTS_FUNCTIONS.register("mine", lambda *given: calls.append(given) or given[1])
    (model := _model(GptOssConfig(**GROUPED, num_local_experts=4))).set_experts_implementation("mine")
    model(input_ids=torch.zeros(1, 3, dtype=torch.int64))
    found = [(m.is_transposed, m.has_bias, m.has_gate, len(x), of.shape, by.shape) for m, x, of, by in calls]
    assert found == [(True, True, True, 3, (3, 4), (3, 4))] * 2
