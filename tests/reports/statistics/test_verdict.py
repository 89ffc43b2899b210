from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.load.sweep import load_sweep
from reports.statistics.comparable import comparable
from reports.statistics.verdict import verdict


def ids(frame):
    return frame["trial_id"].tolist()


def test_the_rival_is_the_best_of_the_next_quantizer(folder, add):
    add("a", eval_loss=2.5, quantizer="ternary")
    add("b", eval_loss=2.55, quantizer="ternary", rank=8)
    add("c", eval_loss=2.75, quantizer="none")
    found = verdict(comparable(load_sweep(folder)).contest)
    assert [row["trial_id"] for row in found.best] == ["a"]
    (rival,) = found.rivals
    assert (rival.row["trial_id"], found.across) == ("c", True)
    assert rival.gap == pytest.approx(0.25)
    assert found.percent(rival.gap) == pytest.approx(100 * 0.25 / 2.75)


def test_the_best_of_every_other_quantizer_is_a_rival(folder, add):
    for trial_id, quantizer, loss in (
        ("a", "none", 2.5),
        ("b", "ternary", 2.7),
        ("c", "binary", 2.6),
        ("d", "binary", 2.65),
    ):
        add(trial_id, eval_loss=loss, quantizer=quantizer, rank=ord(trial_id))
    found = verdict(comparable(load_sweep(folder)).contest)
    assert [rival.row["trial_id"] for rival in found.rivals] == ["c", "b"]


def test_a_sole_quantizers_rival_is_its_next_trial(folder, add):
    add("a", eval_loss=2.5)
    add("b", eval_loss=2.75, rank=8)
    found = verdict(comparable(load_sweep(folder)).contest)
    (rival,) = found.rivals
    assert (rival.row["trial_id"], found.across, rival.gap) == ("b", False, 0.25)


def test_a_tie_has_no_rival_among_those_that_tie(folder, add):
    add("a", eval_loss=2.5, quantizer="binary")
    add("b", eval_loss=2.5, quantizer="none")
    found = verdict(comparable(load_sweep(folder)).contest)
    assert [row["trial_id"] for row in found.best] == ["a", "b"]
    assert found.rivals == ()


def test_nothing_to_rank(folder):
    assert verdict(comparable(load_sweep(folder)).contest).best == ()


def test_the_confirmed_decide_where_there_are_any(folder, add):
    add("t0", eval_loss=2.5, rank=8)
    add("t1", eval_loss=2.6, rank=16)
    for seed in (1, 2):
        add(f"t{2 * seed}", eval_loss=2.7, rank=8, seed=seed, confirms="t0", record={"test_loss": 2.8 + seed / 10})
        add(f"t{2 * seed + 1}", eval_loss=2.4, rank=16, seed=seed, confirms="t1", record={"test_loss": 2.6 + seed / 10})
    groups = comparable(load_sweep(folder))
    assert ids(groups.ranked) == ["t0", "t1"]
    assert groups.confirmed["name"].tolist() == ["t1", "t0"]
    assert groups.confirmed["test_loss"].tolist() == pytest.approx([2.75, 2.95])
    assert groups.confirmed["error"].tolist() == pytest.approx([0.05, 0.05])
    found = verdict(groups.contest)
    (rival,) = found.rivals
    assert (found.best[0]["name"], rival.row["name"], rival.gap) == ("t1", "t0", pytest.approx(0.2))


QUANTIZERS = ["none", "binary", "ternary"]


def simulated(rng, configurations, shift, examples=48):
    """The verdict on a sweep over examples of different length. `shift`: how much worse each configuration truly is, in
    standard errors of a difference of two."""
    tokens = rng.integers(3, 60, examples)
    shared = tokens * rng.normal(3.0, 0.5, examples)
    error = np.sqrt(2 * (0.1**2 * tokens**2 + 0.3**2 * tokens).sum()) / tokens.sum()
    scores, rows = {}, []
    for number in range(configurations):
        losses = shared + tokens * rng.normal(0, 0.1, examples) + np.sqrt(tokens) * rng.normal(0, 0.3, examples)
        losses = losses + shift[number] * error * tokens
        ids = [f"e{index}" for index in range(examples)]
        scores[f"t{number:02d}"] = {0: pd.DataFrame({"example_id": ids, "loss": losses, "tokens": tokens})}
        loss = losses.sum() / tokens.sum()
        rows.append({"trial_id": f"t{number:02d}", "loss": loss, "config.quantizer": QUANTIZERS[number % 3]})
    contest = pd.DataFrame(rows).sort_values("loss", ignore_index=True)
    contest.insert(0, "place", contest["loss"].rank(method="min").astype("Int64"))
    return verdict(contest, lambda row: scores[row["trial_id"]])


def test_sweeps_without_a_true_difference_are_called_tied():
    """In at least 93 % of 500, although the verdict is about the best of many."""
    rng = np.random.default_rng(7)
    found = [simulated(rng, 12, [0] * 12) for _ in range(500)]
    assert sum(bool(each.tied) for each in found) >= 0.93 * 500


def test_a_true_difference_of_three_standard_errors_has_a_winner():
    """In at least 80 % of 500."""
    rng = np.random.default_rng(8)
    found = [simulated(rng, 2, [0, 3]) for _ in range(500)]
    won = [not each.tied and each.best[0]["trial_id"] == "t00" for each in found]
    assert sum(won) >= 0.80 * 500
