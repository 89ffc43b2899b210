"""A Gaussian process that knows of trials which were stopped, of divergence, and of what was refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bitlora.base.info import BaseInfo, LayerShape
from sweeps.search.bounds import Bounds
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.search.sampling.seen import SeeingGP, SeenStudy
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "rank": {"low": 4, "high": 64, "log": True},
    "dropout": {"low": 0.0, "high": 0.2, "step": 0.05},
}
SHAPES = (LayerShape("model.layers.0.q_proj", 100, 50),)
BASE = BaseInfo("base", "nf4", "abc", SHAPES, (SHAPES[0].name,), 96, 1000)


def spec(**search: Any) -> Spec:
    search = {"sampler": "gp", "space": SPACE, **search}
    return Spec.model_validate({"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "search": search})


def loss(config: dict[str, Any]) -> float:
    return 2.0 + math.log10(config["learning_rate"] / 2e-3) ** 2


def search(one: OptunaSearcher) -> list[dict[str, Any]]:
    """The configurations that it hands out, each completed with its loss."""
    found: list[dict[str, Any]] = []
    while (suggestion := one.suggest(f"tune{len(found)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        config = suggestion["config"]
        found.append(config)
        one.finish(suggestion["trial_id"], "completed", loss(config))
    return found


def test_it_finds_the_best_rate(tmp_path: Path) -> None:
    """`auto` is `gp` here."""
    one = OptunaSearcher(spec(sampler="auto", trials=9, startup=4), tmp_path / "study.journal")
    configs = search(one)
    assert min(loss(config) for config in configs[4:]) < 2.03
    for config in configs:
        assert round(config["dropout"] / 0.05) * 0.05 == pytest.approx(config["dropout"])
        assert isinstance(config["rank"], int)


def test_what_was_stopped_is_not_proposed_again() -> None:
    """The nearer to 1, the better, but what is beyond 0.6 was stopped. Optuna's own sees nothing there, and goes there."""
    study = optuna.create_study()
    known = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for x in (0.0, 0.2, 0.4, 0.5, 0.6):
        study.add_trial(optuna.trial.create_trial(params={"x": x}, distributions=known, value=3.0 - x))
    stopped = {"state": TrialState.PRUNED, "distributions": known}
    for x in (0.75, 0.9, 1.0):
        study.add_trial(optuna.trial.create_trial(params={"x": x}, value=5.0, intermediate_values={4: 5.0}, **stopped))
    for sampler, beyond in (
        (SeeingGP(SeenStudy(study, None, 2, completed=True), 0, 2), False),
        (optuna.samplers.GPSampler(seed=0, n_startup_trials=2), True),
    ):
        study.sampler = sampler
        assert (study.ask().suggest_float("x", 0.0, 1.0) > 0.7) is beyond


def test_how_it_sees_trials_that_have_not_completed() -> None:
    study = optuna.create_study()
    known = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}

    def add(state: TrialState, x: float, last: float | None = None, **more: Any) -> None:
        steps = {} if last is None or state == TrialState.COMPLETE else {4: last}
        value = None if state == TrialState.FAIL else last
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params={"x": x}, distributions=known, value=value, intermediate_values=steps, **more
            )
        )

    def seen() -> list[tuple[float, str, float | None, int]]:
        trials = SeenStudy(study, None, 2, completed=True)._get_trials()
        return [(t.params["x"], t.state.name, t.value, len(t.constraints)) for t in trials]

    add(TrialState.PRUNED, 0.1, 5.0)
    add(TrialState.FAIL, 0.2, 3.0, user_attrs={"status": "diverged"}, constraints={"diverged": 1.0})
    assert seen() == [(0.1, "COMPLETE", 5.0, 0), (0.2, "PRUNED", None, 1)]
    add(TrialState.COMPLETE, 0.3, 2.0)
    add(TrialState.COMPLETE, 0.4, 4.0)
    add(TrialState.PRUNED, 0.5, 3.5)
    assert seen() == [
        (0.1, "COMPLETE", 4.0, 0),
        (0.2, "COMPLETE", 4.0, 0),
        (0.3, "COMPLETE", 2.0, 0),
        (0.4, "COMPLETE", 4.0, 0),
        (0.5, "COMPLETE", 3.5, 0),
    ]
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "FAIL", "COMPLETE", "COMPLETE", "PRUNED"]


def test_it_knows_earlier_sweeps_and_keeps_within_bounds(tmp_path: Path) -> None:
    sweep = spec(trials=4, startup=4, where={"adapter_params": {"max": 2400}})
    rates = [1e-4 * 10 ** (n / 6) for n in range(12)]
    earlier = [
        EarlierTrial({"learning_rate": rate, "rank": 4 + n, "dropout": 0.0}, loss({"learning_rate": rate}))
        for n, rate in enumerate(rates)
    ]
    one = OptunaSearcher(sweep, tmp_path / "study.journal", bounds=Bounds(sweep, BASE), earlier=earlier)
    configs = search(one)
    assert all(config["rank"] <= 16 for config in configs)
    assert min(loss(config) for config in configs) < 2.03
