from __future__ import annotations

import hashlib
import re

import pytest
from constructed import spread, write_base
from huggingface_hub import ModelCard

from reports.load.sweep import load_sweep
from reports.pages.card import Serving, model_card


def card(folder, trial="t0", **more):
    return model_card(load_sweep(folder), trial, "LoRA weights.", "import peft\n", **more)


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


def test_a_folder_with_a_slash_is_none_either(folder, add):
    add("t0", eval_loss=2.5, record={"base": {"model": "models/mine", "revision": "0123456789abcdef"}})
    assert ModelCard(card(folder)).data.base_model is None


def test_the_verdict_says_with_whom_it_is_tied_and_what_it_keeps(folder, add):
    """By hand: 40 examples whose losses move together, so that a difference that is the same on all is told for sure."""
    add("t0", eval_loss=2.5, scores=spread(2.5, 0.1))
    add("t1", eval_loss=2.6, quantizer="ternary", scores=spread(2.6, 0.1))
    add("t2", eval_loss=2.7, quantizer="ternary", rank=4, scores=spread(2.7, 0.1))
    add("t3", status="pruned", eval_loss=2.9, steps=8, quantizer="binary", scores=spread(2.9, 0.1))
    text = card(folder)
    assert "- The sweep: quickstart: full precision is ahead on this seed, " in text
    assert "- On the eval rows this configuration has the lowest loss.\n" in text
    assert "the base was not scored on these rows.\n" in text
    assert "- On the eval rows this configuration is 0.1000 nats above t0 (95 %: 0.1000 to 0.1000).\n" in card(
        folder, "t1"
    )
    assert "this configuration is number 3 of 3 by its loss; the verdict is about others.\n" in card(folder, "t2")
    assert "- The trial is not compared with others: it did not train as long as they did.\n" in card(folder, "t3")


def test_a_tie_is_called_one(folder, add):
    add("t0", eval_loss=2.5, scores=spread(2.5, 0.1))
    add("t1", eval_loss=2.501, quantizer="ternary", scores=spread(2.501, 0.1)[::-1])
    assert "- On the eval rows this configuration has the lowest loss; tied with it: t1.\n" in card(folder)
    assert re.search(r"is 0\.0010 nats above t0 \(95 %: -0\.\d+ to 0\.\d+, tied\)\.", card(folder, "t1"))


def test_it_names_the_share_of_the_gain_that_is_kept(folder, add):
    """By hand: the base 4.5, full precision 2.5, ternary 3.0: it keeps 1.5 of 2."""
    add("t0", eval_loss=2.5, scores=spread(2.5, 0.1))
    add("t1", eval_loss=3.0, quantizer="ternary", scores=spread(3.0, 0.1))
    write_base(folder, spread(4.5, 0.1))
    assert "- It is the best in full precision, and gains 2.0000 nats over the base.\n" in card(folder)
    kept = "- It keeps 75.00 % of the gain over the base of the best in full precision (95 %: 75.00 to 75.00).\n"
    assert kept in card(folder, "t1")


def test_command_licence_and_servers(folder, add):
    add("t0", eval_loss=2.5)
    text = card(folder, licence="apache-2.0", serving=Serving("vllm serve base\n", ("It is said.",)))
    sha = hashlib.sha256((folder / "sweep.yaml").read_bytes()).hexdigest()[:16]
    assert "- Sweep: `bitlora sweep sweep.yaml --out quickstart`, sweep.yaml being the sweep's own" in text
    assert f"(its SHA-256 begins with {sha})\n" in text
    assert "- Licence of the base: apache-2.0\n" in text
    assert "## How to serve it\n\n```sh\nvllm serve base\n```\n\n- It is said.\n" in text
    text = card(folder)
    assert "- Licence of the base: unknown; look at its own card\n" in text
    assert "How to serve it" not in text


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
