from __future__ import annotations

import pytest
from constructed import spread
from huggingface_hub import ModelCard

from reports.load.sweep import load_sweep
from reports.pages.card import model_card


def card(folder, trial="t0"):
    return model_card(load_sweep(folder), trial, "LoRA weights.", "import peft\n")


def test_the_hub_reads_its_metadata_and_its_metrics_with_their_errors(folder, add):
    hub = {"base": {"model": "org/base-1B", "quantization": "nf4"}}
    add("t0", eval_loss=2.5, quantizer="ternary", scores=spread(2.5, 0.1), record=hub)
    for seed in (1, 2):
        tests = spread(2.6 + seed / 100, 0.1)
        add(f"t{seed}", eval_loss=2.5, quantizer="ternary", seed=seed, confirms="t0", test=tests, record=hub)
    read = ModelCard(card(folder))
    assert read.data.base_model == "org/base-1B"
    assert read.data.library_name == "peft"
    assert "quantizer:ternary" in read.data.tags
    found = {(each.dataset_split, each.metric_value): each.metric_name for each in read.data.eval_results}
    # By hand: 40 examples of ten tokens, 0.1 around their mean, so 0.1 * sqrt(40 / 39) / sqrt(40)
    assert "± 0.0160" in found["eval", 2.5]
    assert "± 0.0050" in found["test", 2.615]
    assert "2 fresh seeds" in found["test", 2.615]
    assert "- test: 2.6150 ± 0.0050 (over 2 fresh seeds" in read.text


def test_a_folder_of_this_machine_is_no_hub_id(folder, add):
    add("t0", eval_loss=2.5, record={"base": {"model": "/home/me/base"}, "data": {"source": "a.jsonl"}})
    read = ModelCard(card(folder))
    assert read.data.base_model is None
    assert read.data.datasets is None
    assert read.data.eval_results is None


def test_what_a_user_wrote_means_only_itself(folder, add):
    add(
        "t0",
        eval_loss=2.5,
        quantizer="<script>|`x`",
        record={"data": {"source": "a: [b\n# c"}},
        scores=spread(2.5, 0.1),
    )
    read = ModelCard(card(folder))
    assert read.data.tags[-1] == "quantizer:<script>|`x`"
    assert "<script>" not in read.text
    assert "\n# c" not in read.text


def test_no_such_trial(folder, add):
    add("t0", eval_loss=2.5)
    with pytest.raises(KeyError):
        card(folder, "t9")
