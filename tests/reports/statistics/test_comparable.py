from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.load.sweep import load_sweep
from reports.sections.leaderboard import leaderboard
from reports.statistics.comparable import comparable, pareto
from reports.statistics.findings import findings


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
    groups = comparable(load_sweep(folder))
    assert ids(groups.ranked) == ["best", "second"]
    assert ids(groups.other) == ["aimless", "cut", "short"]
    assert ids(groups.pruned) == ["pruned"]


def test_where_trials_have_their_best_evaluation_it_may_be_before_their_last_step(folder, add):
    """Also of those that ended short of their budget, since it did not get better any more."""
    add("whole", eval_loss=2.6)
    add("early", eval_loss=2.5, steps=16, rank=8)
    add("pruned", "pruned", eval_loss=2.0, steps=8)
    assert ids(comparable(load_sweep(folder)).ranked) == ["whole"]
    spec = folder / "sweep.yaml"
    spec.write_text(spec.read_text() + "train: {keep: best}\n")
    found = load_sweep(folder)
    groups = comparable(found)
    assert ids(groups.ranked) == ["early", "whole"]
    assert ids(groups.pruned) == ["pruned"]
    assert groups.other.empty
    assert "Each has its best evaluation, which need not be its last." in str(leaderboard(findings(found)).blocks[1])


def test_what_began_with_anothers_weights_does_not_rank_and_a_number_there_is_no_trial(folder, add):
    """Records of before have a number under that key, of another thing."""
    add("a", eval_loss=2.5, warm_start="b@32")
    add("b", eval_loss=2.6, warm_start=0.0)
    groups = comparable(load_sweep(folder))
    assert (ids(groups.ranked), ids(groups.other)) == (["b"], ["a"])


def test_a_tie_shares_its_place_and_sorts_by_trial_id(folder, add):
    for trial_id, loss in (("c", 2.5), ("a", 2.6), ("b", 2.5), ("d", 2.7)):
        add(trial_id, eval_loss=loss, rank=ord(trial_id))
    ranked = comparable(load_sweep(folder)).ranked
    assert ids(ranked) == ["b", "c", "a", "d"]
    assert ranked["place"].tolist() == [1, 1, 3, 4]


def test_pruned_by_steps_then_loss_then_id(folder, add):
    for trial_id, steps, loss in (("e", 8, None), ("d", 8, 2.5), ("c", 16, 2.9), ("b", 8, 2.5), ("a", 16, 3.0)):
        add(trial_id, "pruned", eval_loss=loss, steps=steps)
    assert ids(comparable(load_sweep(folder)).pruned) == ["c", "a", "b", "d", "e"]


def test_trials_that_differ_in_their_seed_alone_are_one_configuration(folder, add):
    for seed, loss in enumerate((2.5, 2.7, 2.9)):
        add(f"a{seed}", eval_loss=loss, seed=seed)
    add("b0", eval_loss=2.6, rank=8)
    add("b1", eval_loss=2.6001, rank=8)  # a twin, seed and all: the first counts
    ranked = comparable(load_sweep(folder)).ranked
    assert ranked["trials"].tolist() == [("b0", "b1"), ("a0", "a1", "a2")]
    assert ranked["seeds"].tolist() == [1, 3]
    assert ranked["eval_loss"].tolist() == [2.6, pytest.approx(2.7)]
    assert np.isnan(ranked["error"][0])
    assert ranked["error"][1] == pytest.approx(0.2 / 3**0.5)  # the deviation of 2.5, 2.7, 2.9 is 0.2


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
