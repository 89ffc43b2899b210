"""Which axes mattered, over records whose answer is known."""

from __future__ import annotations

import numpy as np
import ped_anova
import pytest

from reports.load.sweep import load_sweep
from reports.statistics.comparable import comparable
from reports.statistics.importances import importances


def equal(trials):
    ids = {trial for group in comparable(trials).ranked["trials"] for trial in group}
    return trials[trials["trial_id"].isin(ids)]


def test_the_axis_that_decides_is_the_one_that_mattered(folder, add):
    for number in range(24):
        rate, rank = 1e-4 * 1.2**number, (4, 8, 16)[number % 3]
        add(f"t{number:02d}", eval_loss=3.0 - number / 20 + rank / 1e4, learning_rate=rate, rank=rank)
    trials = load_sweep(folder).trials
    space = {"rank": [4, 8, 16], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    found = importances(equal(trials), 30, ["rank", "learning_rate", "seed"], space)
    assert found.shares["axis"].tolist() == ["learning_rate", "rank"]
    assert found.shares["importance"].iloc[0] > 0.9
    assert found.shares["importance"].sum() == pytest.approx(1)
    assert (found.used, found.of, found.best) == (24, 30, 5)


def test_importances_are_those_of_the_paper(folder, add):
    """Held against a PED-ANOVA that shares no code with Optuna's."""
    rng = np.random.default_rng(0)
    rates, ranks, losses = np.exp(rng.uniform(-9, -5, 60)), rng.choice([4, 8, 16], 60), rng.normal(2.5, 0.1, 60)
    for number, (rate, rank, loss) in enumerate(zip(rates, ranks, losses, strict=True)):
        add(f"t{number:02d}", eval_loss=float(loss), learning_rate=float(rate), rank=int(rank))
    space = {"rank": [4, 8, 16], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    found = importances(load_sweep(folder).trials, 60, ["rank", "learning_rate"], space)
    expected = ped_anova.importances(losses.tolist(), {"learning_rate": np.log(rates)}, {"rank": ranks.tolist()})
    assert dict(zip(found.shares["axis"], found.shares["importance"], strict=True)) == pytest.approx(expected, rel=1e-6)
    assert found.best == 6


@pytest.mark.parametrize("choices", [True, False])
def test_an_axis_that_hangs_on_another_is_one_of_choices_where_each_of_its_domains_is(folder, add, choices):
    rng = np.random.default_rng(1)
    rates, names = rng.choice([1e-3, 2e-3, 3e-3], 40).tolist(), rng.choice(["none", "binary"], 40).tolist()
    losses = rng.normal(2.5, 0.1, 40).tolist()
    for number, (rate, name, loss) in enumerate(zip(rates, names, losses, strict=True)):
        add(f"t{number:02d}", eval_loss=loss, learning_rate=rate, quantizer=name)
    other = [1e-3, 3e-3] if choices else {"low": 1e-3, "high": 3e-3, "log": True}
    space = {"quantizer": ["none", "binary"], "learning_rate": {"by": "quantizer", "none": [2e-3], "default": other}}
    found = importances(load_sweep(folder).trials, 40, ["quantizer", "learning_rate"], space)
    ranges = {} if choices else {"learning_rate": np.log(rates)}
    listed = {"quantizer": names} | ({"learning_rate": rates} if choices else {})
    expected = ped_anova.importances(losses, ranges, listed)
    assert dict(zip(found.shares["axis"], found.shares["importance"], strict=True)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_few_trials_say_nothing(folder, add, count):
    for number in range(count):
        add(f"t{number}", eval_loss=2.5 + number, rank=number + 1)
    found = importances(load_sweep(folder).trials, 30, ["rank"], {})
    assert (len(found.shares), found.used, found.of) == (0, count, 30)


def test_an_axis_that_is_missing_in_some_trials_or_never_varies_is_left_out(folder, add):
    for number in range(12):
        more = {"dropout": None} if number == 3 else {"dropout": number / 20}
        add(f"t{number}", eval_loss=2.5 + number, rank=number + 1, alpha=8.0, **more)
    found = importances(load_sweep(folder).trials, 12, ["rank", "alpha", "dropout"], {})
    assert found.shares["axis"].tolist() == ["rank"]
