"""What a report says of metrics beside the loss: who is best by each, which way is up, and that every number is right."""

from __future__ import annotations

import json
import random

import pandas as pd
import pytest
from constructed import page_of
from recount import recount

from bitlora.files.baseline import Baseline, write_baseline
from bitlora.files.record import EVAL, TEST, of_set, write_scores
from reports.load.sweep import load_sweep
from reports.report import report, write_report
from reports.sections.measured.metrics import contests
from reports.statistics.findings import findings
from reports.writers.markdown import markdown

DATA = {"source": "pydoc", "train_rows": 2585, "eval_rows": 60, "test_rows": 60}
SPEC = """\
name: quickstart
base: {model: tiny, quantization: nf4}
data: {source: pydoc}
metrics:
  hits: {kind: token_accuracy, set: null, by: sum, direction: null}
  exact: exact_match
  less: {kind: 'mine:errors', direction: min}
  picked: {kind: choice_accuracy, set: arc, by: token}
  code: {kind: perplexity, set: code}
search:
  metric: SEARCHED
  trials: 8
  sampler: tpe
  space: {rank: [8, 16, 32]}
scheduler: {name: none}
"""


def metric_files(trial, seed, skill, split=EVAL):
    """Rows of a trial of such a skill, and what its metrics come to, worked out here."""
    draw = random.Random(seed)
    ids, tokens = [f"{split}{n}" for n in range(60)], [10] * 60
    losses = [10 * (3.0 - skill + draw.gauss(0, 0.2)) for _ in ids]
    hits = [float(sum(draw.random() < 0.3 + 0.4 * skill for _ in range(10))) for _ in ids]
    exact = [float(draw.random() < 0.2 + 0.7 * skill) for _ in ids]
    less = [round(3 * (1 - skill) + draw.random(), 3) for _ in ids]
    write_scores(trial / split, ids, losses, tokens, [40] * 60, columns={"hits": hits, "exact": exact, "less": less})
    found = {"hits": sum(hits) / 600, "exact": sum(exact) / 60, "less": sum(less) / 60}
    if split == EVAL:
        groups = [f"q{n // 3}" for n in range(120)]
        choices = [draw.random() + (1 - skill) * (n % 3 == 0) for n in range(120)]
        names, ones = [f"c{n}" for n in range(120)], [1] * 120
        write_scores(trial / of_set("picked"), names, choices, ones, ones, groups=groups)
        right = [choices[n] < min(choices[n + 1], choices[n + 2]) for n in range(0, 120, 3)]
        code = [20 * (2.0 - skill + draw.gauss(0, 0.1)) for _ in range(40)]
        write_scores(trial / of_set("code"), [f"d{n}" for n in range(40)], code, [20] * 40, [80] * 40)
        found |= {"picked": sum(right) / 40, "code": 2.718281828459045 ** (sum(code) / 800)}
    return sum(losses) / 600, found


@pytest.fixture
def measured(folder, add):
    """Skill grows with the rank, and so does the loss's opposite."""

    def make(searched):
        (folder / "sweep.yaml").write_text(SPEC.replace("SEARCHED", searched))
        for number, (rank, skill) in enumerate([(8, 0.1), (16, 0.85), (32, 0.8)]):
            trial = add(f"t000{number}", eval_loss=2.0, rank=rank, record={"data": DATA})
            loss, values = metric_files(trial, number, skill)
            rewrite(trial, eval_loss=loss, metrics=values)
        loss, values = metric_files(folder / "base", 9, 0.02)
        bare = Baseline(eval_loss=loss, test_loss=None, tokens=600, base={}, versions={}, metrics=values)
        write_baseline(folder / "base", bare)
        return folder

    return make


def rewrite(trial, **changes):
    """The record, and the one line of metrics.jsonl, with other values."""
    for name in ("record.json", "metrics.jsonl"):
        held = json.loads((trial / name).read_text())
        kept = {
            key: value for key, value in changes.items() if name == "record.json" or key in ("eval_loss", "metrics")
        }
        (trial / name).write_text(json.dumps(held | kept) + "\n")


def trials_of(folder):
    return sorted((folder / "trials").iterdir())


@pytest.mark.parametrize(("searched", "way"), [("exact", "higher"), ("less", "lower"), ("code", "lower")])
def test_every_number_of_a_sweep_searched_by_a_metric_is_right(measured, searched, way):
    folder = measured(searched)
    page = write_report([folder]).read_text()
    assert recount(folder) == []
    lead = page.split("\n\n")[1]
    assert lead.startswith(f"**Searched by** `{searched}` ({way} is better; over ")
    found = {contest.metric.name: contest for contest in contests(findings(load_sweep(folder)))}
    assert {name: contest.verdict.best[0]["trial_id"] for name, contest in found.items()}.items() >= {
        "hits": "t0001",
        "less": "t0001",
        "code": "t0001",
    }.items()
    assert found[searched].verdict.interval({"trial_id": "t0000"}).low > 0  # the worst is behind, whichever way is up
    told = json.loads((folder / "report" / "summary.json").read_text())
    said = told["searched"]
    best = found[searched].verdict.best[0]["trial_id"]
    record = json.loads((folder / "trials" / best / "record.json").read_text())
    held = record["metrics"][searched]
    # The verdict, the line and the summary go by it; the loss stays beside.
    assert (told["best"]["trial"], told["best"]["loss"]) == (best, record["eval_loss"])
    losses = {trial.name: json.loads((trial / "record.json").read_text())["eval_loss"] for trial in trials_of(folder)}
    assert told["by_loss"]["best"]["trial"] == min(losses, key=losses.get)
    assert told["outcome"] == found[searched].verdict.outcome
    assert told["line"].startswith(f"quickstart: by {searched} ({way} is better) ")
    assert f" {searched} {held:.4f}" in told["line"]
    assert f"; eval loss {record['eval_loss']:.4f}; 3 trials" in told["line"]
    assert len(told["line"]) <= 200
    assert f"\n\nBy the eval loss: {told['by_loss']['best']['trial']} " in page
    assert said == {
        "metric": searched,
        "higher_is_better": way == "higher",
        "best": best,
        "value": pytest.approx(held, rel=1e-12),
    }


def test_of_two_quantizers_the_one_that_is_better_by_what_was_searched_is_named(folder, add):
    """By the loss the other one is: each is said with its own direction."""
    (folder / "sweep.yaml").write_text(
        SPEC.replace("SEARCHED", "exact").replace("rank: [8", "quantizer: [none, binary], rank: [8")
    )
    for number, (quantizer, skill) in enumerate([("none", 0.1), ("binary", 0.9)]):
        trial = add(f"t000{number}", eval_loss=2.0, quantizer=quantizer, record={"data": DATA})
        loss, values = metric_files(trial, number, skill)
        own = pd.read_parquet(trial / EVAL)
        own.assign(loss=own["loss"] + 20 * skill).to_parquet(trial / EVAL)
        rewrite(trial, eval_loss=loss + 2 * skill, metrics=values)
    page = write_report([folder]).read_text()
    assert recount(folder) == []
    lead, beside = page.split("\n\n")[1:3]
    exact = [json.loads((trial / "record.json").read_text())["metrics"]["exact"] for trial in trials_of(folder)]
    assert "**Binary is ahead on this seed**: its best configuration found, **t0001**" in lead
    assert f" has {exact[1]:.4f}, {exact[1] - exact[0]:.4f} above the next quantizer, full precision: **t0000**" in lead
    assert beside.startswith("By the eval loss: t0000 is ahead on this seed, with ")
    line = json.loads((folder / "report" / "summary.json").read_text())["line"]
    gap = exact[1] - exact[0]
    ahead = f"by exact (higher is better) binary is ahead on this seed, {gap:.4f} above full precision: eval exact "
    assert line.startswith(f"quickstart: {ahead}{exact[1]:.4f} (t0001, ")


def test_a_quantizer_that_lacks_what_was_searched_by_is_said_to(folder, add):
    """Nothing was to be confirmed here."""
    (folder / "sweep.yaml").write_text(
        SPEC.replace("SEARCHED", "exact").replace("rank: [8", "quantizer: [none, binary], rank: [8")
    )
    for number, quantizer in enumerate(["none", "none", "binary"]):
        trial = add(f"t000{number}", eval_loss=2.0, quantizer=quantizer, rank=8 + number, record={"data": DATA})
        loss, values = metric_files(trial, number, 0.5)
        rewrite(
            trial, eval_loss=loss, metrics={k: v for k, v in values.items() if (quantizer, k) != ("binary", "exact")}
        )
    page = page_of(folder)
    left = "Asked for and not in the contest, so nothing is said of it: binary (without what was searched by)."
    assert left in page


def test_what_ties_exactly_by_a_metric_is_said_so(measured):
    folder = measured("exact")
    for trial in trials_of(folder)[1:]:
        pd.read_parquet(trial / EVAL).assign(exact=1.0).to_parquet(trial / EVAL)
        metrics = json.loads((trial / "record.json").read_text())["metrics"]
        rewrite(trial, metrics=metrics | {"exact": 1.0})
    page = write_report([folder]).read_text()
    assert recount(folder) == []
    assert "**tie exactly** with 1.0000, " in page.split("\n\n")[1]
    assert json.loads((folder / "report" / "summary.json").read_text())["may_be_best"] == ["t0001", "t0002"]


def test_a_sweep_searched_by_its_loss_says_first_what_it_said(measured):
    page = markdown(report(load_sweep(measured("eval_loss"))).document)
    assert "Searched by" not in page
    assert "## Metrics" in page
    assert "behind by" not in page


def test_confirmed_configurations_are_measured_on_the_test_split(measured, folder, add):
    measured("exact")
    for number, (rank, skill) in enumerate([(16, 0.9), (16, 0.8), (32, 0.3), (32, 0.4)]):
        trial = add(
            f"t01{number:02}",
            eval_loss=2.0,
            rank=rank,
            seed=number % 2 + 1,
            confirms=f"t000{rank // 16}",
            test=[1.0],
            record={"data": DATA},
        )
        loss, values = metric_files(trial, 10 + number, skill)
        test_loss, on_test = metric_files(trial, 20 + number, skill, TEST)
        rewrite(trial, eval_loss=loss, metrics=values, test_loss=test_loss, test_metrics=on_test)
    page = write_report([folder]).read_text()
    assert recount(folder) == []
    assert "`exact` (higher is better; over the test split): t0001" in page
    assert "`code` (lower is better; over the eval set code): t0001" in page
