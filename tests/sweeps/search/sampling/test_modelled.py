"""`sampler: gp`, as the searcher has it: over ranges and lists, with what was stopped, diverged, refused, or trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from bitlora.base.info import BaseInfo, LayerShape
from sweeps.search.bounds import Bounds
from sweeps.search.sampling import modelled
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.search.sampling.modelled import CurveModel
from sweeps.search.sampling.seen import SeenStudy
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec

SPACE: dict[str, Any] = {
    "quantizer": ["none", "binary"],
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "rank": {"low": 4, "high": 64, "log": True},
    "dropout": {"low": 0.0, "high": 0.2, "step": 0.05},
}
SHAPES = (LayerShape("model.layers.0.q_proj", 100, 50),)
BASE = BaseInfo("base", "nf4", "abc", SHAPES, (SHAPES[0].name,), 96, 1000)
STEPS = 8
DECAY = optuna.distributions.FloatDistribution(0.0, 1.0)


def spec(space: dict[str, Any] | None = None, **search: Any) -> Spec:
    search = {"sampler": "gp", "space": space or SPACE, **search}
    return Spec.model_validate(
        {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "train": {"steps": STEPS}, "search": search}
    )


def loss(config: dict[str, Any]) -> float:
    """Best at 2e-3 with `binary`."""
    return 2.0 + math.log10(config["learning_rate"] / 2e-3) ** 2 + 0.3 * (config["quantizer"] == "none")


def search(one: OptunaSearcher, came_to: Callable[[dict[str, Any]], float] = loss) -> list[dict[str, Any]]:
    """The configurations that it hands out, each completed with its loss."""
    found: list[dict[str, Any]] = []
    while (suggestion := one.suggest(f"tune{len(found)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        config = suggestion["config"]
        found.append(config)
        one.finish(suggestion["trial_id"], "completed", came_to(config))
    return found


def model(study: optuna.Study, low: float = 0.0) -> CurveModel:
    """Over weight decay, from `low` to 1."""
    space = spec({"weight_decay": {"low": low, "high": 1.0}}).search.space
    return CurveModel(space, SeenStudy(study, None, 0), STEPS, None, Random(0))


def trial(alpha: float, state: TrialState, curve: dict[int, float], **more: Any) -> FrozenTrial:
    value = curve.get(STEPS) if state == TrialState.COMPLETE else None
    return create_trial(
        params={"weight_decay": alpha},
        distributions={"weight_decay": DECAY},
        state=state,
        value=value,
        intermediate_values=curve,
        **more,
    )


def test_it_finds_the_best_of_lists_and_ranges(tmp_path: Path) -> None:
    """`auto` is `gp` here."""
    configs = search(OptunaSearcher(spec(sampler="auto", trials=11, startup=4), tmp_path / "study.journal"))
    assert min(loss(config) for config in configs[4:]) < 2.01
    for config in configs:
        assert round(config["dropout"] / 0.05) * 0.05 == pytest.approx(config["dropout"])
        assert isinstance(config["rank"], int)


def test_of_lists_nothing_is_tried_twice_until_all_were(tmp_path: Path) -> None:
    lists = {"quantizer": ["none", "binary"], "learning_rate": [1e-3, 2e-3, 4e-3]}
    configs = search(OptunaSearcher(spec(lists, trials=6, startup=2), tmp_path / "study.journal"))
    assert len({(config["quantizer"], config["learning_rate"]) for config in configs}) == 6


def test_what_was_stopped_is_not_proposed_again_and_says_where_it_would_have_ended() -> None:
    """The nearer to 1 the better at the end, and the worse at half: all that completed say so, below 0.6. What is beyond
    was stopped. From there on the best is expected where nobody was."""
    study = optuna.create_study()
    for alpha in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        study.add_trial(trial(alpha, TrialState.COMPLETE, {4: 4.0 + alpha, 8: 3.0 - alpha}))
    for alpha in (0.7, 0.9):
        study.add_trial(trial(alpha, TrialState.PRUNED, {4: 4.0 + alpha}))
    chosen = model(study).propose({}, lambda _: True)
    assert chosen is not None
    assert chosen["weight_decay"] > 0.9


def test_where_trials_diverge_it_does_not_go() -> None:
    study = optuna.create_study()
    for alpha in (0.0, 0.2, 0.4, 0.5, 0.6):
        study.add_trial(trial(alpha, TrialState.COMPLETE, {8: 3.0 - alpha}))
    open_end = model(study).propose({}, lambda _: True)
    for alpha in (0.65, 0.8, 1.0):
        study.add_trial(trial(alpha, TrialState.FAIL, {}, user_attrs={"status": "diverged"}))
    bounded = model(study).propose({}, lambda _: True)
    assert open_end is not None
    assert bounded is not None
    assert bounded["weight_decay"] < 0.65 < open_end["weight_decay"]


def test_trials_that_train_are_not_proposed_again_and_a_wave_is_known_before_the_study_knows_it() -> None:
    study = optuna.create_study()
    for alpha in (0.0, 0.3, 0.6):
        study.add_trial(trial(alpha, TrialState.COMPLETE, {8: 3.0 - alpha}))
    one = model(study)
    first = one.propose({}, lambda _: True)
    assert first is not None
    study.enqueue_trial({"weight_decay": first["weight_decay"]})
    study.ask().suggest_float("weight_decay", 0.0, 1.0)
    second = one.propose({}, lambda _: True)
    assert second is not None
    assert abs(second["weight_decay"] - first["weight_decay"]) > 0.01
    one.heard({"t0003": (8, 9.0)})
    third = one.propose({}, lambda _: True)
    assert third is not None
    assert third["weight_decay"] < first["weight_decay"]


@pytest.mark.parametrize("values", [{"low": 0.0, "high": 1.0}, [0.0, 0.3, 0.6, 0.8, 1.0]], ids=["range", "list"])
def test_what_failed_is_not_proposed_again_and_again(values: Any) -> None:
    study = optuna.create_study()
    for alpha in (0.0, 0.3, 0.6):
        study.add_trial(trial(alpha, TrialState.COMPLETE, {8: 3.0 - alpha}))
    space = spec({"weight_decay": values}).search.space
    one = CurveModel(space, SeenStudy(study, None, 0), STEPS, None, Random(0))
    first = one.propose({}, lambda _: True)
    assert first is not None
    study.add_trial(trial(first["weight_decay"], TrialState.FAIL, {}, user_attrs={"status": "failed"}))
    second = one.propose({}, lambda _: True)
    assert second is not None
    assert abs(second["weight_decay"] - first["weight_decay"]) > 0.02


def test_of_a_trial_that_was_given_more_steps_what_comes_after_those_of_the_others_is_not_learned() -> None:
    study = optuna.create_study()
    for alpha in (0.0, 0.3, 0.6):
        study.add_trial(trial(alpha, TrialState.COMPLETE, {4: 4.0 + alpha, 8: 3.0 - alpha}))
    study.enqueue_trial({"weight_decay": 0.9})
    study.ask().suggest_float("weight_decay", 0.0, 1.0)
    one, other = model(study), model(study)
    for step in (8, 12, 16, 20, 24):
        one.heard({"t0003": (step, 2.1 - step / 100)})
    other.heard({"t0003": (8, 2.02)})
    chosen = one.propose({}, lambda _: True)
    assert chosen is not None
    assert chosen == other.propose({}, lambda _: True)


def test_planned_values_stay(tmp_path: Path) -> None:
    first = [{"quantizer": "none", "rank": 8}] * 5
    configs = search(OptunaSearcher(spec(trials=6, startup=2, first=first), tmp_path / "study.journal"))
    assert [(config["quantizer"], config["rank"]) for config in configs[:5]] == [("none", 8)] * 5
    assert len({config["learning_rate"] for config in configs[:5]}) == 5


def test_it_knows_earlier_sweeps_and_keeps_within_bounds(tmp_path: Path) -> None:
    sweep = spec(trials=4, startup=4, where={"adapter_params": {"max": 2400}})
    rates = [1e-4 * 10 ** (n / 6) for n in range(12)]
    chosen = [
        {"quantizer": "binary", "learning_rate": rate, "rank": 4 + n, "dropout": 0.0} for n, rate in enumerate(rates)
    ]
    earlier = [EarlierTrial(one, loss(one)) for one in chosen]
    one = OptunaSearcher(sweep, tmp_path / "study.journal", bounds=Bounds(sweep, BASE), earlier=earlier)
    configs = search(one)
    assert all(config["rank"] <= 16 for config in configs)
    assert min(loss(config) for config in configs) < 2.03


def test_of_many_evaluations_the_last_of_each_trial_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelled, "MOST", 5)
    study = optuna.create_study()
    for alpha in (0.0, 0.2, 0.4, 0.6):
        study.add_trial(trial(alpha, TrialState.COMPLETE, {2: 9.0, 4: 9.0, 8: 3.0 - alpha}))
    one = model(study)
    chosen = one.propose({}, lambda _: True)
    assert chosen is not None
    assert chosen["weight_decay"] > 0.6
    assert len(one._learned) == 4
