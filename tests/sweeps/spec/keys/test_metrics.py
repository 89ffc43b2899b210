"""The keys `metrics`, `generation` and `search.metric` of a spec."""

from __future__ import annotations

from pathlib import Path

import pytest
from spec_text import SMALLEST, errors, load

from bitlora.config.metrics import MetricConfig
from sweeps.search.metric import Objective
from sweeps.spec.spec import dump_spec

SETS = "base: {model: a}\ndata: {source: b, eval_sets: {arc: arc.jsonl, code: [c.jsonl, d.jsonl]}}\n"
BOTH = "  arc: {kind: choice_accuracy, set: arc, by: token}\n  code: {kind: perplexity, set: code}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "small.yaml"


def test_metrics_have_a_kind_and_a_direction(file: Path) -> None:
    text = (
        SETS + "metrics:\n  exact: exact_match\n  mine: my.module:score\n  less: {kind: 'm:f', direction: min}\n" + BOTH
    )
    spec = load(file, text + "search: {metric: less}\ngeneration: {stop: ['###']}\n")
    assert spec.metrics["exact"] == MetricConfig(kind="exact_match")
    directions = {name: metric.higher for name, metric in spec.metrics.items()}
    assert directions == {"exact": True, "mine": True, "less": False, "arc": True, "code": False}
    again = load(file, dump_spec(spec))
    assert again == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metrics: {m: exact}",
         "metrics.m: found 'exact'; give token_accuracy, exact_match, choice_accuracy, perplexity, or module:function"),
        ("metrics: {loss: exact_match}",
         "metrics: the name 'loss' is taken; give another out of small letters, digits and _"),
        ("metrics: {p: perplexity}",
         "metrics.p.set: perplexity is over an eval set; give {kind: perplexity, set: NAME}, a name out of data.eval_sets"),
        ("metrics: {e: {kind: exact_match, set: arc}}",
         "metrics.e.set: exact_match is over the eval split; leave it out"),
        ("metrics: {p: {kind: perplexity, set: arv}}",
         "metrics.p.set: found 'arv'; give a name out of data.eval_sets"),
        ("metrics: {e: {kind: exact_match, by: token}}",
         "metrics.e.by: exact_match compares no choices; leave it out"),
        ("metrics: {e: {kind: exact_match, direction: min}}",
         "metrics.e.direction: of exact_match it is known; leave it out"),
        ("search: {metric: exat}\nmetrics: {exact: exact_match}",
         "search.metric: found 'exat'; give eval_loss, or a name out of metrics; did you mean exact?"),
        ("generation: {max_tokens: 0}", "generation.max_tokens: found 0; give a number of at least 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(file: Path, text: str, said: str) -> None:
    (line,) = errors(file, SMALLEST + text + "\n")
    assert line.startswith(f"small.yaml:3: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scheduler: {name: asha, scoring: sequential}",
         "scheduler.scoring: sequential does not go with metrics, which are over all rows of the eval split; give all"),
        ("search: {metric: exact, objectives: [loss, bytes]}",
         "search.objectives: [loss, bytes] is a front of the eval loss, and what is searched by is exact; give [loss]"),
        ("search: {metric: exact}\nconfirm: {seeds: auto, margin: 0.5 %}",
         "confirm.seeds: auto goes by the eval loss, and what is searched by is exact; give a number"),
        ("search: {metric: exact}\ntrain: {keep: best}",
         "train.keep: keeps the evaluation of the lowest eval loss, and what is searched by is exact; give train"),
    ],
)  # fmt: skip
def test_what_goes_by_the_loss_does_not_go_with_another_metric(file: Path, text: str, said: str) -> None:
    (line,) = errors(file, SMALLEST + "metrics: {exact: exact_match}\n" + text + "\n")
    assert said in line


def test_a_set_that_no_metric_is_over_is_said(file: Path) -> None:
    text = SETS.replace(", code: [c.jsonl, d.jsonl]", "") + "metrics: {exact: exact_match}\n"
    assert errors(file, text) == [
        "small.yaml:2: data.eval_sets.arc: no metric is over it; give one, such as {kind: perplexity, set: arc}"
    ]


def test_what_is_searched_is_lower_where_it_is_better_in_one_place() -> None:
    metrics = {"exact": MetricConfig(kind="exact_match"), "less": MetricConfig(kind="m:f", direction="min")}
    result = {"eval_loss": 2.0, "metrics": {"exact": 0.25, "less": 3.0}}
    found = {name: Objective.of_spec(name, metrics) for name in ("eval_loss", "exact", "less")}
    assert {name: each.of(result) for name, each in found.items()} == {"eval_loss": 2.0, "exact": -0.25, "less": 3.0}
    assert {name: each.shown(result) for name, each in found.items()} == {"eval_loss": 2.0, "exact": 0.25, "less": 3.0}
    assert found["exact"].turned(-0.25) == 0.25
    assert found["exact"].of({"eval_loss": 2.0, "metrics": None}) is None
    assert found["exact"].of({"eval_loss": 2.0, "metrics": {"exact": float("nan")}}) is None
