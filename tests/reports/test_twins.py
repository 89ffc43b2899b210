"""Trials that have another's result, since their configuration comes to the same: it was trained once, and counts once."""

from __future__ import annotations

import io
import shutil

import pandas as pd
import pytest
from constructed import page_of, spread

from reports.load.sweep import load_sweep
from reports.pages.card import standing
from reports.pages.versus import Control, versus
from reports.report import trials_csv
from reports.statistics.endings import in_common
from reports.statistics.findings import findings


@pytest.fixture
def twin(add):
    """Adds a trial that has the result of another."""

    def add_twin(trial_id, first, status="completed", **more):
        reason = f"same configuration as {first}, whose result is used"
        return add(trial_id, status, record={"same_as": first, "seconds": 0.0, "reason": reason}, **more)

    return add_twin


def test_a_configuration_does_not_tie_with_itself(folder, add, twin):
    """The granularity of scales makes no difference where there are none, and full precision is best."""
    best, other = spread(2.5, 0.1), spread(2.6, 0.1)
    for number, granularity in enumerate(("tensor", "row", "channel")):
        add(f"b{number}", eval_loss=2.6 + number, quantizer="binary", granularity=granularity, scores=other)
        full = {"eval_loss": 2.5, "granularity": granularity, "scores": best}
        twin(f"n{number}", "n0", **full) if number else add("n0", **full)
    found = findings(load_sweep(folder))
    assert [row["name"] for row in found.verdict.best] == ["n0"]
    assert found.verdict.outcome == "ahead"
    assert found.groups.ranked["trial_id"].tolist() == ["n0", "b0", "b1", "b2"]
    assert "tie exactly" not in page_of(folder)


def test_what_mattered_is_over_trials_that_were_trained(folder, add, twin):
    for number in range(30):
        add(f"t{number:02d}", eval_loss=2.5 + number / 10, rank=(8, 16, 32)[number // 10])
    for number in range(30, 36):
        twin(f"t{number}", "t00", eval_loss=2.5, rank=8)
    page = page_of(folder)
    assert "over 30 of 30 trials at equal budget: the share" in page
    shutil.rmtree(folder / "trials/t29")
    assert "What mattered" not in page_of(folder)  # they are too few


def test_the_effort_of_a_search_is_what_was_trained(folder, add, twin):
    add("n0", eval_loss=2.5)
    twin("n1", "n0", eval_loss=2.5, alpha=32.0)
    add("b0", eval_loss=2.6, quantizer="binary")
    page = page_of(folder)
    assert "Searched alike: 1 trial at full budget for each of 2 quantizers." in page
    assert "2 trials at equal budget" in page


def test_steps_and_tokens_count_once(folder, add, twin):
    add("a", eval_loss=2.5)
    twin("b", "a", eval_loss=2.5)
    add("c", "pruned", eval_loss=2.9, steps=8, rank=8)
    twin("d", "c", "pruned", eval_loss=2.9, steps=8, rank=8)
    page = page_of(folder)
    assert "40 optimizer steps and 4,000 tokens, prompts included, were trained" in page
    assert "Stopping saved 24 steps" in page
    assert findings(load_sweep(folder)).groups.pruned["trial_id"].tolist() == ["c"]


def test_what_trials_that_ended_badly_have_in_common_is_not_said_of_one(folder, add, twin):
    add("a", eval_loss=2.5, rank=8)
    add("b", "diverged", rank=32)
    twin("c", "b", "diverged", rank=32)
    assert in_common(findings(load_sweep(folder)).searched, ["rank"]) == ()
    add("d", "diverged", rank=32, alpha=8.0)
    assert [line.trials for line in in_common(findings(load_sweep(folder)).searched, ["rank"])] == [2]


def test_the_report_says_how_many_there_are_and_trials_csv_whose_result_they_have(folder, add, twin):
    add("a", eval_loss=2.5)
    add("b", eval_loss=2.6, rank=8)
    assert "took over the result" not in page_of(folder)
    assert "same_as" not in trials_csv(findings(load_sweep(folder)))
    twin("c", "b", eval_loss=2.6, rank=8)
    page, found = page_of(folder), findings(load_sweep(folder))
    assert "Of these, 1 took over the result of another, whose configuration comes to the same" in page
    assert "8 asked for, 3 began" in page
    table = pd.read_csv(io.StringIO(trials_csv(found)), index_col="trial_id")
    assert table["same_as"].fillna("").to_dict() == {"a": "", "b": "", "c": "b"}
    assert table["place"].to_dict() == {"a": 1, "b": 2, "c": 2}


def test_where_the_first_cannot_be_read_one_of_its_twins_stands_for_it(folder, add, twin):
    (add("a", eval_loss=2.5) / "record.json").unlink()
    twin("b", "a", eval_loss=2.5, alpha=8.0)
    twin("c", "a", eval_loss=2.5, alpha=32.0)
    sweep = load_sweep(folder)
    assert sweep.firsts == {"a": "a", "b": "b", "c": "b"}
    assert findings(sweep).groups.ranked["trial_id"].tolist() == ["b"]


def test_who_asks_for_a_twin_is_told_of_its_first(folder, add, twin):
    add("a", eval_loss=2.5, scores=spread(2.5, 0.1))
    twin("b", "a", eval_loss=2.5, alpha=32.0, scores=spread(2.5, 0.1))
    add("c", eval_loss=2.6, rank=8, scores=spread(2.6, 0.1))
    sweep = load_sweep(folder)
    assert standing(findings(sweep), "b")[1] == "On the eval rows this configuration has the lowest loss."
    assert "quickstart: a" in str(versus([sweep], Control(0, "b"))[0].blocks[0])
