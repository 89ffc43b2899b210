"""Which axes mattered, over records whose answer is known."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
import ped_anova
import pytest

from reports.inference import divergence as inference
from reports.load.sweep import load_sweep
from reports.statistics.comparable import comparable
from reports.statistics.importances import importances


def equal(sweep):
    ids = {trial for group in comparable(sweep).ranked["trials"] for trial in group}
    return sweep.trials[sweep.trials["trial_id"].isin(ids)]


def test_the_axis_that_decides_is_the_one_that_mattered(folder, add):
    for number in range(36):
        rate, rank = 1e-4 * 1.13**number, (4, 8, 16)[number % 3]
        add(f"t{number:02d}", eval_loss=3.0 - number / 30 + rank / 1e4, learning_rate=rate, rank=rank)
    sweep = load_sweep(folder)
    space = {"rank": [4, 8, 16], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    found = importances(equal(sweep), 40, ["rank", "learning_rate", "seed"], space)
    assert found.shares["axis"].tolist() == ["learning_rate", "rank"]
    assert found.shares["importance"].iloc[0] > 0.9
    assert found.shares["told"].tolist() == [True, False]
    assert found.shares["chance"].iloc[0] < 0.9
    assert found.shares["importance"].sum() == pytest.approx(1)
    assert (found.used, found.of, found.best) == (36, 40, 5)


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


@pytest.mark.parametrize("count", [0, 1, 29])
def test_few_trials_say_nothing(folder, add, count):
    for number in range(count):
        add(f"t{number}", eval_loss=2.5 + number, rank=number + 1)
    found = importances(load_sweep(folder).trials, 40, ["rank"], {})
    assert (len(found.shares), found.used, found.of) == (0, count, 40)


def test_an_axis_that_is_missing_in_some_trials_or_never_varies_is_left_out(folder, add):
    for number in range(30):
        more = {"dropout": None} if number == 3 else {"dropout": number / 50}
        add(f"t{number}", eval_loss=2.5 + number, rank=number + 1, alpha=8.0, **more)
    found = importances(load_sweep(folder).trials, 30, ["rank", "alpha", "dropout"], {})
    assert found.shares["axis"].tolist() == ["rank"]


def optunas(losses, axes):
    """Optuna's own evaluator, axis -> share: another that shares no code with ours."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    distributions = {
        axis: optuna.distributions.CategoricalDistribution(sorted(set(values)))
        if axis == "rank"
        else optuna.distributions.FloatDistribution(min(values), max(values), log=axis == "learning_rate")
        for axis, values in axes.items()
    }
    for number, loss in enumerate(losses):
        params = {axis: values[number] for axis, values in axes.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss))
    quantile = max(5, -(-len(losses) // 10)) / len(losses)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


@pytest.mark.parametrize("trials", [30, 47, 120])
def test_importances_are_optunas(trials):
    rng = np.random.default_rng(trials)
    axes = {
        "learning_rate": np.exp(rng.uniform(-9, -5, trials)).tolist(),
        "dropout": rng.uniform(0, 0.2, trials).tolist(),
        "rank": rng.choice([4, 8, 16], trials).tolist(),
    }
    frame = pd.DataFrame({f"config.{axis}": values for axis, values in axes.items()})
    frame["eval_loss"] = rng.normal(2.5, 0.1, trials)
    space = {"rank": [4, 8, 16], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    found = importances(frame, trials, list(axes), space).shares
    expected = optunas(frame["eval_loss"].tolist(), axes)
    assert dict(zip(found["axis"], found["importance"], strict=True)) == pytest.approx(expected, rel=1e-9)


SPACE = {"learning_rate": {"low": 0.0, "high": 1.0}, "rank": [4, 8, 16, 32], "alpha": [8, 16, 32]}


def told(rng, trials, effect, space=SPACE):
    """The axes beyond chance in a simulated sweep: `effect(frame)` is what the axes do to the loss."""
    frame = pd.DataFrame(
        {
            "config.quantizer": rng.choice(["none", "binary", "ternary"], trials),
            "config.learning_rate": rng.uniform(size=trials),
            "config.rank": rng.choice([4, 8, 16, 32], trials),
            "config.alpha": rng.choice([8, 16, 32], trials),
        }
    )
    frame["eval_loss"] = effect(frame) + rng.normal(size=trials)
    shares = importances(frame, trials, ["quantizer", "learning_rate", "rank", "alpha"], space).shares
    return set(shares.loc[shares["told"], "axis"])


def by_quantizer(frame):
    return frame["config.quantizer"].map({"none": -4.0, "ternary": 0.0, "binary": 4.0})


@pytest.fixture
def quick(monkeypatch):
    """Fewer shuffles, for simulations."""
    monkeypatch.setattr(inference, "SHUFFLES", 200)


@pytest.mark.parametrize("trials", [30, 100])
def test_an_axis_that_does_nothing_is_within_chance(quick, trials):
    """With loss set by the quantizer alone, or by nothing: in 100 sweeps each no more than chance has it."""
    rng = np.random.default_rng(trials)
    found = [told(rng, trials, by_quantizer) for _ in range(100)]
    assert sum("quantizer" in axes for axes in found) >= (55 if trials == 30 else 80)
    # 5 of 100 by the rule, and more than 11 in one of a hundred such tests
    assert sum(bool(axes - {"quantizer"}) for axes in found) <= 11
    assert sum(bool(told(rng, trials, lambda frame: 0.0)) for _ in range(100)) <= 11


def test_an_axis_whose_range_hangs_on_the_quantizer_is_not_told_for_it(quick):
    """Each quantizer has a range of its own, and the rate does nothing within it."""
    rng = np.random.default_rng(3)

    def effect(frame):
        frame["config.learning_rate"] += frame["config.quantizer"].map({"none": 0.0, "ternary": 2.0, "binary": 4.0})
        return by_quantizer(frame)

    hangs = {"by": "quantizer", "none": {"low": 0, "high": 1}, "default": {"low": 2, "high": 5}}
    within = sum("learning_rate" in told(rng, 40, effect, SPACE | {"learning_rate": hangs}) for _ in range(60))
    assert within <= 7
    over_all = sum("learning_rate" in told(rng, 40, effect) for _ in range(20))
    assert over_all >= 10  # what it would be if it were shuffled over all trials
