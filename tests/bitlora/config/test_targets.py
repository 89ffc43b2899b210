"""Targets and patterns as text: held against what PEFT makes of the same, and what is wrong with them."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from pydantic import TypeAdapter, ValidationError

from bitlora.config.explain import explain
from bitlora.config.targets import (
    AlphaPattern,
    RankPattern,
    Targets,
    idle_key,
    of_pattern,
    pattern,
    targeted,
    unmatched,
)

LLAMA = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 2, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
]
NAMES = [
    *LLAMA,
    "transformer.h.0.attn.c_attn",
    "transformer.h.0.attn.c_proj",
    "transformer.h.0.mlp.c_proj",
    "gpt_neox.layers.3.attention.dense",
    "model.decoder.layers.2.fc1",
    "model.layers.4.block_sparse_moe.experts.1.w2",
]
TEXTS = [["q_proj", "mlp.down_proj"], ["c_proj"], ["proj"], r".*layers\.(0|11)\..*proj", "q_proj|v_proj", [LLAMA[3]]]


def text_of(value, kind=Targets):
    return TypeAdapter(kind).validate_python(value, strict=True)


@pytest.mark.parametrize("value", TEXTS)
@pytest.mark.parametrize("layers", [None, (0, 2), (3, 11)])
def test_targets_are_those_of_peft(value, layers):
    config = LoraConfig(target_modules=value, layers_to_transform=None)
    expected = [name for name in NAMES if check_target_module_exists(config, name)]
    text = text_of(value)
    if layers is not None:
        # PEFT takes layers with lists alone, and not for names that are given as a whole
        ends = [name.partition(".")[2] for name in expected]
        whole = LoraConfig(target_modules=ends, layers_to_transform=[*range(layers[0], layers[1] + 1)])
        expected = [name for name in expected if check_target_module_exists(whole, name)]
        text = text_of(f"{text} in layers {layers[0]}-{layers[1]}")
    assert targeted(text, NAMES) == expected
    assert text_of(json.loads(json.dumps(text))) == text


def test_attention_and_mlp_part_all_of_them():
    attention, mlp = targeted("attention", NAMES), targeted("mlp", NAMES)
    assert sorted(attention + mlp) == sorted(NAMES)
    assert {name.rsplit(".", 1)[-1] for name in attention} == {
        "q_proj",
        "v_proj",
        "o_proj",
        "c_attn",
        "c_proj",
        "dense",
    }
    assert targeted("attention, fc1 in layers 2-2", NAMES) == [
        name for name in NAMES if ".2." in name and ("attn" in name or "fc1" in name)
    ]
    assert targeted("all-linear", NAMES) == NAMES


KEYS = ["q_proj", "proj", ".*proj", r"layers\.1\.self_attn\.q_proj", "down_proj|gate_proj", "none_such", "mlp.*"]


@given(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 64), max_size=4))
def test_a_pattern_is_that_of_peft(mapping):
    text = text_of(mapping, RankPattern)
    assert pattern(text) == mapping
    assert [*pattern(text)] == [*mapping]  # the first that matches counts
    assert text_of(text, RankPattern) == text
    for name in NAMES:
        assert of_pattern(pattern(text), name, 99) == mapping.get(get_pattern_key(mapping, name), 99)
    assert (idle_key(text, NAMES) is not None) == bool({"none_such", "proj"} & mapping.keys())


def test_alphas_need_not_be_whole():
    text = text_of({"q_proj": 0.5, "v_proj": 1e-05, "up_proj": 16}, AlphaPattern)
    assert pattern(text) == {"q_proj": 0.5, "v_proj": 1e-5, "up_proj": 16}
    assert text_of(text, AlphaPattern) == text
    assert text_of({}, AlphaPattern) == "none"


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Targets, [], "found an empty list; give a list of layers' names, all-linear, attention"),
        (Targets, 3, "found 3; give a list of layers' names"),
        (Targets, None, "found null; give a list"),
        (Targets, ["q_proj", ".*v_proj"], r"found '\.\*v_proj' in a list of names; a regular expression stands alone"),
        (Targets, "(q_proj", "not a regular expression: missing \\)"),
        (Targets, "mlp in layers 7-3", "found layers 7-3; give the first before the last"),
        (RankPattern, {"q_proj": 0}, "found 0 for q_proj; give a whole number of at least 1"),
        (RankPattern, {"q_proj": 2.5}, "found 2.5 for q_proj; give a whole number"),
        (RankPattern, {"q_proj": True}, "found true for q_proj"),
        (RankPattern, "q_proj", "give a mapping of|as the name of layers"),
        (RankPattern, ["q_proj"], "found a list; give a mapping of layers' names to numbers, such as"),
        (RankPattern, {"(": 2}, "not a regular expression"),
        (AlphaPattern, {"q_proj": float("inf")}, "found inf for q_proj; give a number above 0"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(kind, value, said):
    with pytest.raises(ValidationError) as error:
        text_of(value, kind)
    line = explain(error.value.errors(include_url=False), value)
    assert re.search(said, line), line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q_porj", "'q_porj' matches no linear layer of the base; did you mean q_proj?"),
        ("attn", "'attn' matches no linear layer"),
        (
            "q_proj, zzz",
            "'zzz' matches no linear layer of the base; there are down_proj, gate_proj, o_proj, q_proj, v_proj",
        ),
        (".*experts.*", "'.*experts.*' matches no linear layer"),
        (
            "q_proj in layers 12-20",
            "'q_proj in layers 12-20' matches no linear layer of the base: its blocks are 0 to 11",
        ),
    ],
)
def test_what_matches_nothing_is_named(text, said):
    assert unmatched(text, LLAMA).startswith(said)
    assert unmatched("q_proj in layers 1-1", LLAMA) == ""
