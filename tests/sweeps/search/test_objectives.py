"""Two objectives, loss and bytes: the study has both, and the front decides what is stopped, better, and confirmed."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contract
import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from sweeps.onray.schedulers import make_scheduler
from sweeps.search.metric import values_in_search
from sweeps.search.rules import Halving, HyperBand
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec

SPACE: dict[str, Any] = {
    "quantizer": ["none", "binary"],
    "rank": [4, 8, 16],
    "learning_rate": {"low": 1e-4, "high": 5e-3},
}


class Shapes:
    """As much of the bounds as a searcher asks of them: nothing is too large."""

    def bytes(self, chosen: dict[str, Any]) -> int:
        return chosen["rank"] * (16 if chosen["quantizer"] == "none" else 1)

    def over(self, chosen: dict[str, Any]) -> dict[str, float]:
        return {}

    def __bool__(self) -> bool:
        return False


def spec(confirm: dict[str, Any] | None = None, **search: Any) -> Spec:
    return Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "search": {"objectives": ["loss", "bytes"], "space": SPACE, **search},
            "scheduler": {"reduction": 4},
            "confirm": confirm,
        }
    )


def loss(config: dict[str, Any]) -> float:
    """Larger adapters are better, and one bit costs less than a rank."""
    return (
        3 - config["rank"] / 10 + (0.1 if config["quantizer"] == "binary" else 0) + abs(config["learning_rate"] - 2e-3)
    )


def search(folder: Path, of: Spec, until: int = 99, **more: Any) -> tuple[OptunaSearcher, list[dict[str, Any]]]:
    """Every third trial is stopped, and one in seven diverges."""
    one: Any = OptunaSearcher(of, folder / "study.journal", bounds=Shapes(), **more)  # type: ignore[arg-type]
    given: list[dict[str, Any]] = []
    while len(given) < until and isinstance(suggestion := one.suggest(f"tune{len(given)}"), dict):
        number, config = int(suggestion["trial_id"][1:]), suggestion["config"]
        one.on_trial_result(f"tune{len(given)}", {"step": 8, "eval_loss": loss(config), "tokens": 9})
        status = "diverged" if number % 7 == 6 else "pruned" if number % 3 == 2 else "completed"
        one.finish(suggestion["trial_id"], "completed" if "confirms" in config else status, loss(config))
        given.append(suggestion)
    return one, given


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_study_has_both_values_and_a_sweep_that_goes_on_the_rest(tmp_path: Path, sampler: str) -> None:
    of = spec(trials=24, sampler=sampler)
    first, given = search(tmp_path, of, until=15)
    first.close()
    again, rest = search(tmp_path, of)
    assert [each["trial_id"] for each in (*given, *rest)] == [f"t{number:04d}" for number in range(24)]
    assert (len(given), len(rest), again.left) == (15, 9, 0)
    assert again.ended["t0000"].value == loss(given[0]["config"])
    assert again.config("t0000") == given[0]["config"]
    assert again.config("t0020") == rest[5]["config"]
    assert again.config("t0099") is None
    study = contract.study(tmp_path)
    assert [direction.name for direction in study.directions] == ["MINIMIZE"] * 2
    for trial, each in zip(study.trials, (*given, *rest), strict=True):
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [loss(each["config"]), Shapes().bytes(each["config"])]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def test_of_a_trial_with_more_steps_the_search_has_its_loss_at_the_old_budget(tmp_path: Path) -> None:
    """The sampler too, which goes on with it; and so has a sweep that goes on."""
    of = spec(trials=8, startup=2, confirm={"top": 1, "seeds": 1})
    one, given = search(tmp_path, of, until=0)
    first = one.suggest("tune")
    one.steered._trials._configure = lambda chosen: {**chosen, "steps": 32}
    one.steered.extended(first["trial_id"], {"steps": 64})
    for step, value in ((16, 3.0), (32, 2.5), (64, 0.1)):
        one.on_trial_result("tune", {"step": step, "eval_loss": value, "tokens": 9})
    one.finish(first["trial_id"], "completed", 0.1)
    [trial] = contract.study(tmp_path).trials
    size = Shapes().bytes(first["config"])
    assert trial.values == [0.1, size]
    assert values_in_search(trial) == [2.5, size]
    one.close()
    again, given = search(tmp_path, of)
    assert len(given) == 8
    assert again.left == 0


def test_tpe_looks_where_the_front_is(tmp_path: Path) -> None:
    """Of adapters in full precision each is beaten by one in one bit: with 16 times the bytes it is 0.1 better."""
    space = {"quantizer": ["none", "binary"], "rank": [4, 8, 16], "learning_rate": {"low": 1e-4, "high": 1.0}}
    _, given = search(tmp_path, spec(trials=60, space=space))
    rates = [each["config"]["learning_rate"] for each in given]
    assert sum(rate < 0.3 for rate in rates[30:]) >= 16  # by chance 9


def test_trials_of_earlier_sweeps_are_known_with_their_bytes(tmp_path: Path) -> None:
    chosen = {"quantizer": "binary", "rank": 4, "learning_rate": 1e-3}
    _, given = search(tmp_path, spec(trials=6), earlier=[EarlierTrial(chosen, 2.5)] * 5)
    assert len(given) == 6


def grid(**more: Any) -> Spec:
    return spec(sampler="grid", trials=6, space={"quantizer": ["none", "binary"], "rank": [4, 8, 16]}, **more)


LOSSES = dict(zip(product(("none", "binary"), (4, 8, 16)), (2.6, 2.45, 2.4, 2.7, 2.65, 2.5), strict=True))
"""By quantizer and rank, of 64, 128, 256, 4, 8 and 16 bytes: none 4 alone is beaten in both, by binary 16."""


@pytest.mark.parametrize(
    ("top", "confirmed"),
    [
        (9, [("none", 16), ("none", 8), ("binary", 16), ("binary", 8), ("binary", 4)]),
        (3, [("none", 16), ("binary", 16), ("binary", 4)]),
        (1, [("none", 16)]),
    ],
)
def test_the_front_is_confirmed_and_of_a_long_one_what_lies_evenly_along_it(
    tmp_path: Path, top: int, confirmed: list[tuple[str, int]]
) -> None:
    one: Any = OptunaSearcher(grid(confirm={"top": top, "seeds": 1}), tmp_path / "study.journal", bounds=Shapes())  # type: ignore[arg-type]
    of: dict[str, tuple[str, int]] = {}
    for number in range(6):
        given = one.suggest(f"tune{number}")
        key = given["config"]["quantizer"], given["config"]["rank"]
        of[given["trial_id"]] = key
        one.finish(given["trial_id"], "completed", LOSSES[key])
    again = []
    while (given := one.suggest(f"again{len(again)}")) != Searcher.FINISHED:
        again.append(of[given["config"]["confirms"]])
    assert again == confirmed


def test_patience_is_with_the_front(tmp_path: Path) -> None:
    """Worse and larger than another is no new best; worse and smaller is."""
    one: Any = OptunaSearcher(grid(), tmp_path / "study.journal", bounds=Shapes())  # type: ignore[arg-type]
    said = []
    one._budget._asked = SimpleNamespace(hours=None, tokens=None, patience=2)
    for number, value in enumerate([2.5, 2.6, 2.7, 2.4, 2.65, 2.45]):  # 64, 128, 256, 4, 8, 16 bytes
        given = one.suggest(f"tune{number}")
        if not isinstance(given, dict):
            break
        one.finish(given["trial_id"], "completed", value)
        said.append(one._budget.spent() != "")
    assert said == [False, False, True]


SIZES = {"small": 4.0, "large": 64.0, "middle": 16.0, "other": 64.0}


def test_whoever_is_smaller_than_all_that_beat_it_goes_on() -> None:
    losses = {"small": 2.9, "large": 2.5, "middle": 2.7, "other": 2.6}
    both, alone = Halving(8, 4, 32, SIZES.__getitem__), Halving(8, 4, 32)
    for rule in (both, alone):
        for trial, value in losses.items():
            rule.enter(trial, 8, value)
    assert {trial for trial in losses if both.goes_on(trial, 8)} == {"small", "large", "middle"}
    assert {trial for trial in losses if alone.goes_on(trial, 8)} == {"large"}
    bracket = HyperBand(8, 4, 32, lambda trial: -float(trial[1:]))
    for trial, value in (("t0", 2.5), ("t1", 2.6)):
        bracket.enter(trial, 8, value)
    assert bracket.goes_on("t1", 8)


def test_the_scheduler_knows_sizes_where_they_are_an_objective() -> None:
    tune = [SimpleNamespace(config={"trial_id": name, "config": {}}) for name in SIZES]
    losses = dict(zip(SIZES, (2.9, 2.5, 2.7, 2.6), strict=True))
    for of, stopped in ((spec(), ["other"]), (spec(objectives=["loss"]), ["small", "middle", "other"])):
        scheduler = make_scheduler(of, 32, size=SIZES.__getitem__)
        scheduler.heard({name: (8, value) for name, value in losses.items()})
        said = {
            each.config["trial_id"]: scheduler.on_trial_result(
                None, each, {"step": 8, "eval_loss": losses[each.config["trial_id"]]}
            )
            for each in tune
        }
        assert [name for name, word in said.items() if word == TrialScheduler.STOP] == stopped


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
