"""The simulator's own arithmetic, on a table that is made up; and that the recorded one is whole."""

import csv
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from curves import AXES, CURVES, points
from scoring import completed, decisions
from simulator import ByPromotion, ByRay, ByRule, Search, Table, Way, made_up

from sweeps.search.rules import Halving

WAYS = [
    Way("today", lambda budget: ByRay(6, 2, budget), every=6),
    Way("waves", lambda budget: ByRule(Halving(3, 2, budget)), every=3, packs=2, once=True),
    Way("promotion", lambda budget: ByPromotion(3, 2, budget), every=3, once=True, sets_aside=True),
    Way("stock", lambda budget: ByRay(6, 2, budget), every=6, stock=True),
]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_tokens_are_those_of_all_steps_and_nothing_is_had_twice_that_should_not_be(way):
    known = made_up()
    search = Search(known, way, seed=1, listed=True, most=30)
    run = search.until_found()
    assert run.tokens == sum(known.tokens.get(trial.step, 0) for trial in search.begun)
    assert run.trained == len(search.begun) <= run.trials <= 30
    times = Counter(tuple(trial.point.values()) for trial in search.begun)
    assert not way.once or max(times.values()) == 1
    finals = [known.loss(trial.point, 12) for trial in search.begun if trial.step == 12]
    assert run.found == (min(finals) <= 1.005 * known.best)


def test_the_first_of_a_wave_passes_where_it_is_judged_alone():
    wave = {"a": (6, 9.0), "b": (6, 1.0), "c": (6, 6.0)}
    went_on = {}
    for name, judge in (
        ("ray", ByRay(6, 2, 12)),
        ("waves", ByRule(Halving(6, 2, 12))),
        ("paper", ByPromotion(6, 2, 12)),
    ):
        judge.heard(wave)
        went_on[name] = {trial for trial, (step, loss) in wave.items() if judge.goes_on(trial, step, loss)}
    assert went_on == {"ray": {"a", "b"}, "waves": {"b"}, "paper": {"b"}}


def test_between_two_rates_a_loss_lies_between_theirs():
    known = made_up()
    low, high = AXES["learning_rate"][2:4]
    point = {"quantizer": "binary", "rank": 8, "alpha": 32}
    ends = [known.loss({**point, "learning_rate": rate}, 6) for rate in (low, high)]
    assert known.loss({**point, "learning_rate": (low * high) ** 0.5}, 6) == pytest.approx(sum(ends) / 2)


def test_the_recorded_table_is_whole():
    with CURVES.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    every = Counter(tuple(row[axis] for axis in AXES) for row in rows)
    assert every == {tuple(map(str, point.values())): 4 for point in points()}
    assert len(every) == 96
    last = [row["row_losses"].split() for row in rows if row["step"] == "12"]
    assert {len(losses) for losses in last} == {8}
    assert Table(rows).best == min(float(row["eval_loss"]) for row in rows if row["step"] == "12")


def test_rungs_that_stop_scoring_decide_as_on_all_rows_over_recorded_sweeps():
    """`scoring.py` prints the same of 200 searches each."""
    for name in ("lowbit", "full-precision"):
        runs = [decisions(completed(name), 2, seed) for seed in range(6)]
        assert sum(same.sum() for same, _ in runs) >= 0.95 * sum(len(same) for same, _ in runs)
        assert max(share for _, share in runs) < 1
