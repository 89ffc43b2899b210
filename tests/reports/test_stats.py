from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.load import load_sweep
from reports.stats import comparable, pareto, verdict


def ids(frame):
    return frame["trial_id"].tolist()


def test_only_completed_trials_at_the_largest_budget_rank(folder, add):
    add("best", eval_loss=2.5)
    add("second", eval_loss=2.6, rank=8)
    add("short", eval_loss=2.0, steps=16, batch_size=8, record={"config": {"quantizer": "none", "steps": 16}})
    add("cut", eval_loss=1.9, steps=24)
    add("aimless", eval_loss=1.8, record={"config": {"quantizer": "none"}})
    for status in ("pruned", "diverged", "failed", "interrupted"):
        add(status, status, eval_loss=1.0)
    (add("unknown", eval_loss=0.5) / "record.json").unlink()
    groups = comparable(load_sweep(folder).trials)
    assert ids(groups.ranked) == ["best", "second"]
    assert ids(groups.other) == ["aimless", "cut", "short"]
    assert ids(groups.pruned) == ["pruned"]


def test_a_tie_shares_its_place_and_sorts_by_trial_id(folder, add):
    for trial_id, loss in (("c", 2.5), ("a", 2.6), ("b", 2.5), ("d", 2.7)):
        add(trial_id, eval_loss=loss, rank=ord(trial_id))
    ranked = comparable(load_sweep(folder).trials).ranked
    assert ids(ranked) == ["b", "c", "a", "d"]
    assert ranked["place"].tolist() == [1, 1, 3, 4]


def test_pruned_by_steps_then_loss_then_id(folder, add):
    for trial_id, steps, loss in (("e", 8, None), ("d", 8, 2.5), ("c", 16, 2.9), ("b", 8, 2.5), ("a", 16, 3.0)):
        add(trial_id, "pruned", eval_loss=loss, steps=steps)
    assert ids(comparable(load_sweep(folder).trials).pruned) == ["c", "a", "b", "d", "e"]


def test_the_rival_is_the_best_of_the_next_quantizer(folder, add):
    add("a", eval_loss=2.5, quantizer="ternary")
    add("b", eval_loss=2.55, quantizer="ternary", rank=8)
    add("c", eval_loss=2.75, quantizer="none")
    said = verdict(comparable(load_sweep(folder).trials).contest)
    assert [row["trial_id"] for row in said.best] == ["a"]
    (rival,) = said.rivals
    assert (rival.row["trial_id"], said.across) == ("c", True)
    assert rival.gap == pytest.approx(0.25)
    assert rival.percent == pytest.approx(100 * 0.25 / 2.75)


def test_the_best_of_every_other_quantizer_is_a_rival(folder, add):
    for trial_id, quantizer, loss in (
        ("a", "none", 2.5),
        ("b", "ternary", 2.7),
        ("c", "binary", 2.6),
        ("d", "binary", 2.65),
    ):
        add(trial_id, eval_loss=loss, quantizer=quantizer, rank=ord(trial_id))
    said = verdict(comparable(load_sweep(folder).trials).contest)
    assert [rival.row["trial_id"] for rival in said.rivals] == ["c", "b"]


def test_a_sole_quantizers_rival_is_its_next_trial(folder, add):
    add("a", eval_loss=2.5)
    add("b", eval_loss=2.75, rank=8)
    said = verdict(comparable(load_sweep(folder).trials).contest)
    (rival,) = said.rivals
    assert (rival.row["trial_id"], said.across, rival.gap) == ("b", False, 0.25)


def test_a_tie_has_no_rival_among_those_that_tie(folder, add):
    add("a", eval_loss=2.5, quantizer="binary")
    add("b", eval_loss=2.5, quantizer="none")
    said = verdict(comparable(load_sweep(folder).trials).contest)
    assert [row["trial_id"] for row in said.best] == ["a", "b"]
    assert said.rivals == ()


def test_nothing_to_rank(folder):
    assert verdict(comparable(load_sweep(folder).trials).contest).best == ()


def test_trials_that_differ_in_their_seed_alone_are_one_configuration(folder, add):
    for seed, loss in enumerate((2.5, 2.7, 2.9)):
        add(f"a{seed}", eval_loss=loss, seed=seed)
    add("b0", eval_loss=2.6, rank=8)
    add("b1", eval_loss=2.6001, rank=8)  # a twin, seed and all: the first counts
    ranked = comparable(load_sweep(folder).trials).ranked
    assert ranked["trials"].tolist() == [("b0", "b1"), ("a0", "a1", "a2")]
    assert ranked["seeds"].tolist() == [1, 3]
    assert ranked["eval_loss"].tolist() == [2.6, pytest.approx(2.7)]
    assert np.isnan(ranked["error"][0])
    assert ranked["error"][1] == pytest.approx(0.2 / 3**0.5)  # the deviation of 2.5, 2.7, 2.9 is 0.2


def test_the_confirmed_decide_where_there_are_any(folder, add):
    add("t0", eval_loss=2.5, rank=8)
    add("t1", eval_loss=2.6, rank=16)
    for seed in (1, 2):
        add(f"t{2 * seed}", eval_loss=2.7, rank=8, seed=seed, confirms="t0", record={"test_loss": 2.8 + seed / 10})
        add(f"t{2 * seed + 1}", eval_loss=2.4, rank=16, seed=seed, confirms="t1", record={"test_loss": 2.6 + seed / 10})
    groups = comparable(load_sweep(folder).trials)
    assert ids(groups.ranked) == ["t0", "t1"]
    assert groups.confirmed["name"].tolist() == ["t1", "t0"]
    assert groups.confirmed["test_loss"].tolist() == pytest.approx([2.75, 2.95])
    assert groups.confirmed["error"].tolist() == pytest.approx([0.05, 0.05])
    said = verdict(groups.contest)
    (rival,) = said.rivals
    assert (said.best[0]["name"], rival.row["name"], rival.gap) == ("t1", "t0", pytest.approx(0.2))


def test_the_pareto_front_against_a_look_at_every_pair():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 6, (60, 3)), columns=list("abc"))
    expected = []
    for mine in frame.itertuples(index=False):
        worse = [
            all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine
            for other in frame.itertuples(index=False)
        ]
        expected.append(not any(worse))
    assert pareto(frame, ["a", "b", "c"]).tolist() == expected
    assert 0 < sum(expected) < 60


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
    said = [simulated(rng, 12, [0] * 12) for _ in range(500)]
    assert sum(bool(each.tied) for each in said) >= 0.93 * 500


def test_a_true_difference_of_three_standard_errors_has_a_winner():
    """In at least 80 % of 500."""
    rng = np.random.default_rng(8)
    said = [simulated(rng, 2, [0, 3]) for _ in range(500)]
    won = [not each.tied and each.best[0]["trial_id"] == "t00" for each in said]
    assert sum(won) >= 0.80 * 500
