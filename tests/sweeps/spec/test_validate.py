"""What is wrong with a spec: every error at once, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from spec_text import SMALLEST, errors

from bitlora.quantizers.weights import QUANTIZERS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "small.yaml"


def test_all_errors_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = """\
name: ../up
base: {modl: x}
data:
  source: [a.jsonl, 3]
trian: {}
adapter: {quantizer: bianry}
train:
  learning_rte: 1e-3
  eval_every: epcoh
scheduler: {name: pbtt}
"""
    *names, last = QUANTIZERS
    assert errors(file, text, "train.batch_size=x", "train.stps=3", "data.rows=2") == [
        "small.yaml:1: name: found '../up'; give a folder's name out of letters, digits, '.', '_' and '-'",
        "small.yaml:2: base.model: required key is missing",
        "small.yaml:2: base.modl: unknown key; did you mean model?",
        "small.yaml:4: data.source.1: found 3; give text",
        "small.yaml:5: trian: unknown key; did you mean train?",
        f"small.yaml:6: adapter.quantizer: found 'bianry'; give {', '.join(names)} or {last}; did you mean binary?",
        "small.yaml:8: train.learning_rte: unknown key; did you mean learning_rate?",
        "small.yaml:9: train.eval_every: found 'epcoh'; give a whole number or epoch; did you mean epoch?",
        "small.yaml:10: scheduler.name: found 'pbtt'; give asha, hyperband, bohb, median, pbt, pb2 or none; "
        "did you mean pbt?",
        "--set train.batch_size=x: found 'x'; give a whole number",
        "--set train.stps=3: unknown key; did you mean steps?",
        "--set data.rows=2: found 2; give a number of at least 3",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {steps: 0}", "train.steps: found 0; give a number of at least 1"),
        ("train: {steps: 8.0}", "train.steps: found 8.0; give a whole number"),
        ("train: {steps: true}", "train.steps: found true; give a whole number"),
        ("train: {steps: '8'}", "train.steps: found '8'; give a whole number"),
        ("train: {learning_rate: 0}", "train.learning_rate: found 0; give a number above 0"),
        ("train: {learning_rate: .nan}", "train.learning_rate: found nan; give a finite number"),
        ("train: {schedule: {warmup: 1}}", "train.schedule.warmup: found 1; give a number below 1"),
        ("train: 3", "train: found 3; give a mapping"),
        ("train: {quantizer: none}", "train.quantizer: unknown key; did you mean adapter.quantizer?"),
        (
            "adapter: {init: olora}",
            "adapter.init: found 'olora'; give default, gaussian, orthogonal, pissa or pissa_niter_16 (1 to 99 iterations)",
        ),
        (
            "search: {space: {init: [default, eva]}}",
            "search.space.init.1: eva is not available: it gives each layer the rank that passes over the training rows "
            "show, as many as it takes, and what an adapter has is known here before it is trained: by plan, search.where "
            "and a pack's memory",
        ),
        (
            "adapter: {use_dora: true}",
            "adapter.use_dora: not available: it is called adapter.dora here: true or false",
        ),
        ("adapter: {granularity: row}", "adapter.granularity: found 'row'; give tensor or component"),
        ("name: 3", "name: found 3; give text"),
        ("name: .hidden", "name: found '.hidden'; give a folder's name out of letters, digits, '.', '_' and '-'"),
        (
            "scheduler: {name: ashaa}",
            "scheduler.name: found 'ashaa'; give asha, hyperband, bohb, median, pbt, pb2 or none; did you mean asha?",
        ),
        (
            "confirm: {margin: 0.5}",
            "confirm.margin: found 0.5; give a share such as '0.5 %' (of the loss) or '5 % of gain'",
        ),
        ("confirm: {margin: {share: 2}}", "confirm.margin.share: found 2; give a number below 1"),
        ("confirm: {margin: {of: loss}}", "confirm.margin.share: required key is missing"),
        (
            "trackers: [wandv]",
            "trackers.0: found 'wandv'; give tensorboard, wandb or mlflow; did you mean wandb?",
        ),
        (
            "resources: {packs: 991}",
            "resources.packs: found 991; give at most 990: what starts a pack takes a thousandth of the cluster's head",
        ),
        (
            "resources: {packs: {max: 2000}}",
            "resources.packs.max: found 2000; give at most 990: "
            "what starts a pack takes a thousandth of the cluster's head",
        ),
        ("resources: {workers_per_pack: 0}", "resources.workers_per_pack: found 0; give a number of at least 1"),
        ("resources: {slots: 0}", "resources.slots: found 0; give a number of at least 1 or auto"),
        ("search: {space: {rank: []}}", "search.space.rank: found an empty list; give at least one value"),
        ("search: {space: {rank: [4, 0]}}", "search.space.rank.1: found 0; give a number of at least 1"),
        (
            "search: {space: {rank: [4]}, first: [{rnk: 4}]}",
            "search.first.0.rnk: not an axis of search.space; did you mean rank?",
        ),
        (
            "search: {space: {rank: [4]}, first: [{}, {rank: 5}]}",
            "search.first.1.rank: 5 is not in search.space.rank; add it there or choose one of its values",
        ),
        ("search: {space: {rank: [4]}, first: [{rank: 4}, {rank: 4}]}", "search.first.1: the same as search.first.0"),
    ],
)
def test_a_wrong_value_is_one_line(file: Path, text: str, said: str) -> None:
    assert errors(file, SMALLEST + text) == [f"small.yaml:3: {said}"]


def test_a_default_in_the_place_of_a_wrong_value_raises_no_second_error(file: Path) -> None:
    assert errors(file, SMALLEST + "train: {steps: lots}\nscheduler: {grace: 64}\n") == [
        "small.yaml:3: train.steps: found 'lots'; give a whole number"
    ]
    assert errors(file, SMALLEST + "search: {space: {rank: 3}, first: [{rank: 3}]}\n") == [
        "small.yaml:3: search.space.rank: found 3; give a list of choices or {low: …, high: …} "
        "(a fixed value stands in adapter, train or base)"
    ]
