from __future__ import annotations

import pytest

from reports.load import load_sweep
from reports.stats import comparable, verdict


def ids(frame):
    return frame["trial_id"].tolist()


def test_only_completed_trials_at_the_largest_budget_rank(folder, add):
    add("best", eval_loss=2.5)
    add("second", eval_loss=2.6)
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
        add(trial_id, eval_loss=loss)
    ranked = comparable(load_sweep(folder).trials).ranked
    assert ids(ranked) == ["b", "c", "a", "d"]
    assert ranked["place"].tolist() == [1, 1, 3, 4]


def test_pruned_by_steps_then_loss_then_id(folder, add):
    for trial_id, steps, loss in (("e", 8, None), ("d", 8, 2.5), ("c", 16, 2.9), ("b", 8, 2.5), ("a", 16, 3.0)):
        add(trial_id, "pruned", eval_loss=loss, steps=steps)
    assert ids(comparable(load_sweep(folder).trials).pruned) == ["c", "a", "b", "d", "e"]


def test_the_rival_is_the_best_of_the_next_quantizer(folder, add):
    add("a", eval_loss=2.5, quantizer="ternary")
    add("b", eval_loss=2.55, quantizer="ternary")
    add("c", eval_loss=2.75, quantizer="none")
    said = verdict(comparable(load_sweep(folder).trials).ranked)
    assert [row["trial_id"] for row in said.best] == ["a"]
    assert said.rival is not None
    assert (said.rival["trial_id"], said.across) == ("c", True)
    assert said.gap == pytest.approx(0.25)
    assert said.percent == pytest.approx(100 * 0.25 / 2.75)


def test_a_sole_quantizers_rival_is_its_next_trial(folder, add):
    add("a", eval_loss=2.5)
    add("b", eval_loss=2.75)
    said = verdict(comparable(load_sweep(folder).trials).ranked)
    assert said.rival is not None
    assert (said.rival["trial_id"], said.across, said.gap) == ("b", False, 0.25)


def test_a_tie_has_no_rival_among_those_that_tie(folder, add):
    add("a", eval_loss=2.5, quantizer="binary")
    add("b", eval_loss=2.5, quantizer="none")
    said = verdict(comparable(load_sweep(folder).trials).ranked)
    assert [row["trial_id"] for row in said.best] == ["a", "b"]
    assert said.rival is None


def test_nothing_to_rank(folder):
    assert verdict(comparable(load_sweep(folder).trials).ranked).best == ()
