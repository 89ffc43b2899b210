"""The data of figures, computed apart from their drawing."""

from __future__ import annotations

import json

import pytest
from constructed import begin_at, spread, write_base

from reports.figures.figures import learning_curves, metric_curves, pointed
from reports.figures.style import Plane
from reports.load.sweep import load_sweep

BEGINS = "Each begins with that of the base without an adapter."


@pytest.fixture
def cloned(folder, add):
    """Two trials and a clone that began with the weights of one of them, with a metric; and the base."""
    for name, loss, hits in (("t0", 2.5, 0.8), ("t1", 2.6, 0.7), ("t2", 2.4, 0.9)):
        config = {"warm_start": "t0@32"} if name == "t2" else {"rank": 8 + len(name)}
        trial = add(name, eval_loss=loss, scores=spread(loss, 0.1), **config)
        path = trial / "metrics.jsonl"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"hits": hits}}) + "\n")
    begin_at(folder / "trials" / "t2", 2.55, hits=0.75)
    write_base(folder, spread(3.0, 0.1), metrics={"hits": 0.25})
    return folder


def points(plot, column):
    return list(plot.data[["trial_id", "step", column]].itertuples(index=False, name=None))


def test_what_began_with_anothers_weights_has_one_step_0_its_own(cloned):
    plot = learning_curves(load_sweep(cloned), "t0")
    assert points(plot, "eval_loss") == [
        ("t0", 0, 3.0), ("t0", 32, 2.5), ("t1", 0, 3.0), ("t1", 32, 2.6), ("t2", 0, 2.55), ("t2", 32, 2.4),
    ]  # fmt: skip
    assert plot.figure.caption.endswith(
        " Each but those that began with another trial's weights begins with that of the base without an adapter."
    )
    lines = (cloned / "trials" / "t2" / "metrics.jsonl").read_text().splitlines()
    (cloned / "trials" / "t2" / "metrics.jsonl").write_text(lines[1] + "\n")  # cut off before it was evaluated there
    assert points(learning_curves(load_sweep(cloned), "t0"), "eval_loss")[4:] == [("t2", 32, 2.4)]


def test_a_metrics_curves_begin_with_that_of_the_base_and_can_be_pointed_at(cloned):
    sweep = load_sweep(cloned)
    plot = metric_curves(sweep, "hits", "hits (higher is better)", True, "t0", ["rank"])
    assert points(plot, "value") == [
        ("t0", 0, 0.25), ("t0", 32, 0.8), ("t1", 0, 0.25), ("t1", 32, 0.7), ("t2", 0, 0.75), ("t2", 32, 0.9),
    ]  # fmt: skip
    assert "begins with that of the base" in plot.figure.caption
    told = pointed(plot.curves, Plane(0.1, 0.2, 0.9, 0.8, (0, 32), (0, 1)))
    assert told["lines"][0] == ["t0", "completed; rank 10", [0, 32], [0.25, 0.8]]
    write_base(cloned, spread(3.0, 0.1), metrics={})  # one that could not be measured so
    plot = metric_curves(load_sweep(cloned), "hits", "hits (higher is better)", True, "t0")
    assert points(plot, "value")[:2] == [("t0", 32, 0.8), ("t1", 32, 0.7)]
    assert "base" not in plot.figure.caption


def test_without_clones_all_begin_with_the_base(folder, add):
    add("t0", eval_loss=2.5, scores=spread(2.5, 0.1))
    assert "base" not in learning_curves(load_sweep(folder), "t0").figure.caption
    write_base(folder, spread(3.0, 0.1))
    assert learning_curves(load_sweep(folder), "t0").figure.caption.endswith(f" {BEGINS}")


def test_in_records_of_before_a_number_under_that_key_is_no_trial(folder, add):
    """As in reports/examples/article."""
    add("t0", eval_loss=2.5, scores=spread(2.5, 0.1), warm_start=0.0)
    write_base(folder, spread(3.0, 0.1))
    assert points(learning_curves(load_sweep(folder), "t0"), "eval_loss") == [("t0", 0, 3.0), ("t0", 32, 2.5)]
