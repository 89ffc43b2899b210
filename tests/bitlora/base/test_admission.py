"""Bases are admitted or refused from their configuration alone, by name."""

import pytest
import torch
import transformers
from base_families import COMMON, HELD, REFUSED

from bitlora.base.admission import unknown_option
from bitlora.base.describe import describe_base
from bitlora.base.locate import BaseError
from bitlora.config.sections import BaseConfig


def saved(config, folder):
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", HELD)
def test_what_packs_hold(family, tmp_path):
    make, targets = HELD[family]
    base = describe_base(BaseConfig(model=saved(make(), tmp_path), targets=targets), longest=64)
    assert base.targets
    assert not any("vision" in name for name in base.targets)


@pytest.mark.parametrize("family", REFUSED)
def test_what_packs_refuse_is_refused_by_name(family, tmp_path):
    make, said = REFUSED[family]
    with pytest.raises(BaseError) as refused:
        describe_base(BaseConfig(model=saved(make(), tmp_path)), longest=64)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "gpt-oss"])
def test_all_linear_has_the_experts_and_attention_alone_is_told_apart(family, tmp_path):
    model = saved(HELD[family][0](), tmp_path)
    found = describe_base(BaseConfig(model=model))
    shapes = {shape.name: shape for shape in found.linears}
    assert {name.rsplit(".", 1)[-1] for name in found.targets if shapes[name].experts == 4} == {
        "gate_up_proj",
        "down_proj",
    }
    assert found.targets == tuple(shapes)
    assert {
        name.rsplit(".", 1)[-1] for name in describe_base(BaseConfig(model=model, targets="attention")).targets
    } == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }


@pytest.mark.parametrize("targets", ["all-linear", "mlp", "experts"])
def test_experts_that_adapters_do_not_reach_are_never_left_out_in_silence(targets, tmp_path, monkeypatch):
    for where in ("experts", "describe"):  # as of a class that multiplies its experts by itself
        monkeypatch.setattr(f"bitlora.base.{where}.expert_weights", lambda module: [])
    with pytest.raises(
        BaseError, match=r"% of the parameters of .* are routed experts.*\[q_proj, k_proj, v_proj, o_proj\]"
    ):
        describe_base(BaseConfig(model=saved(HELD["Mixtral"][0](), tmp_path), targets=targets))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_a_base_that_is_stored_quantized_is_named_as_that(method, tmp_path):
    config = transformers.LlamaConfig(**COMMON, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(BaseError, match=rf"is stored quantized \(by {method}\)"):
        describe_base(BaseConfig(model=saved(config, tmp_path)))


@pytest.mark.parametrize(
    ("config", "most", "said"),
    [
        (HELD["OPT"][0](), 128, "knows 128 positions; give at most 128"),
        (
            transformers.LlamaConfig(
                **COMMON, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
            ),
            128,
            r"\(dynamic\) turns otherwise .* give at most 128",
        ),
        (
            transformers.Phi3Config(
                **COMMON,
                original_max_position_embeddings=32,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                },
            ),
            32,
            r"\(longrope\) turns otherwise .* give at most 32",
        ),
    ],
)
def test_rows_that_are_too_long(config, most, said, tmp_path):
    base = BaseConfig(model=saved(config, tmp_path))
    assert describe_base(base, longest=most).targets
    with pytest.raises(BaseError, match=said):
        describe_base(base, longest=most + 1)


def test_the_text_part_alone_of_a_base_that_sees_images(tmp_path):
    names = describe_base(BaseConfig(model=saved(HELD["Gemma 3, multimodal"][0](), tmp_path))).targets
    assert len(names) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in names)


@pytest.mark.parametrize(
    ("mask", "options", "unknown"),
    [
        (None, {"dropout": 0.0, "sliding_window": 8, "softcap": 30.0, "s_aux": torch.ones(2), "use_cache": True}, ""),
        (None, {"position_bias": None, "new_flag": False, "is_causal": True}, ""),
        (None, {"position_bias": torch.zeros(1)}, "position_bias"),
        (None, {"chunk": 8}, "chunk"),
        (None, {"is_causal": False}, "attention to later tokens"),
        (torch.zeros(1), {}, "a mask of its own"),
    ],
)
def test_options_of_attention_are_on_a_list_or_refused(mask, options, unknown):
    assert unknown_option(mask, options) == unknown
