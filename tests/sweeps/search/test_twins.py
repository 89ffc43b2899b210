"""Trials whose configuration another trial has had already, as the searcher hands the others out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.keys.confirm import ConfirmConfig
from sweeps.spec.spec import Spec


def spec(**search: Any) -> Spec:
    return Spec.model_validate({"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "search": search})


def trials(folder: Path) -> list[FrozenTrial]:
    """The study as another process sees it."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="s", storage=storage).trials


def drain(one: OptunaSearcher) -> list[dict[str, Any]]:
    """Every trial it hands out, none told."""
    found: list[Any] = []
    while isinstance(suggestion := one.suggest(f"tune{len(found)}"), dict):
        found.append(suggestion)
    return found


def result(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "eval_loss": loss, "status": "running"}


def rates(config: dict[str, Any]) -> Any:
    """What the numbers of a configuration hang on, in these tests: all but the rank."""
    return config["quantizer"], config["learning_rate"]


def listed(folder: Path, trials: int, rate: tuple[float, ...] = (1e-3,), **more: Any) -> OptunaSearcher:
    """A grid of which trials differ in the rank alone, but for the learning rate; the rank is the fastest."""
    space = {"quantizer": ["none"], "learning_rate": [*rate], "rank": [4, 8, 16]}
    chosen = spec(sampler="grid", space=space, trials=trials, **more)
    return OptunaSearcher(chosen, folder / "study.journal", essence=rates)


def test_an_equal_configuration_has_the_result_of_the_first(tmp_path: Path) -> None:
    """Of six trials two are handed out; each ending is the others', with every value, and said."""
    one = listed(tmp_path, 6, (1e-3, 2e-3))
    said: list[Any] = []
    one.twin = said.append
    assert [each["trial_id"] for each in drain(one)] == ["t0000", "t0003"]
    one.on_trial_result("tune0", result(8, 3.0))
    assert not said
    twins = one.finish("t0000", "pruned", 3.0, "stopped by asha at step 8")
    why = "same configuration as t0000: stopped by asha at step 8"
    assert [(twin.suggestion["trial_id"], twin.first, twin.status, twin.reason) for twin in twins] == [
        (name, "t0000", "pruned", why) for name in ("t0001", "t0002")
    ]
    assert [twin.suggestion["config"]["rank"] for twin in twins] == [8, 16]
    one.on_trial_result("tune1", result(8, 2.5))
    one.on_trial_result("tune1", result(16, 2.0))
    one.finish("t0003", "completed", 2.0)
    told = trials(tmp_path)
    assert [(trial.state, trial.value) for trial in told] == 3 * [(TrialState.PRUNED, 3.0)] + 3 * [
        (TrialState.COMPLETE, 2.0)
    ]
    assert [trial.intermediate_values for trial in told] == 3 * [{8: 3.0}] + 3 * [{8: 2.5, 16: 2.0}]
    assert [trial.user_attrs.get("same_as") for trial in told] == [None, "t0000", "t0000", None, "t0003", "t0003"]
    assert told[5].user_attrs["reason"] == "same configuration as t0003, whose result is used"
    assert not said  # whoever said that a trial has ended was given its twins


def test_a_result_of_before_is_used_at_once_and_a_sweep_that_goes_on_knows_it(tmp_path: Path) -> None:
    first = listed(tmp_path, 2)
    assert [each["trial_id"] for each in drain(first)] == ["t0000"]
    first.on_trial_result("tune0", result(8, 3.0))
    first.close()  # interrupted, and its twin with it
    assert [trial.state for trial in trials(tmp_path)] == 2 * [TrialState.WAITING]
    assert not any("same_as" in trial.user_attrs for trial in trials(tmp_path))
    again = listed(tmp_path, 2)
    assert [each["trial_id"] for each in drain(again)] == ["t0000"]
    assert [twin.status for twin in again.finish("t0000", "completed", 2.5)] == ["completed"]
    third = listed(tmp_path, 3)
    said: list[Any] = []
    third.twin = said.append
    assert drain(third) == []
    assert [(twin.suggestion["trial_id"], twin.first, twin.status) for twin in said] == [
        ("t0002", "t0000", "completed")
    ]
    assert trials(tmp_path)[2].value == 2.5
    assert third.ended["t0001"].same_as == "t0000"


def test_a_trial_that_fails_says_nothing_of_its_configuration(tmp_path: Path) -> None:
    """Of those that wait for it the next is trained, and the others wait for that one: it may have failed of anything."""
    one = listed(tmp_path, 3)
    assert [each["trial_id"] for each in drain(one)] == ["t0000"]
    assert one.suggest("later") is None  # not finished: somebody waits
    assert one.finish("t0000", "failed", None, "no memory") == []
    assert [each["trial_id"] for each in drain(one)] == ["t0001"]
    assert one.suggest("later") is None
    assert one.finish("t0001", "failed", None, "no memory") == []
    assert [each["trial_id"] for each in drain(one)] == ["t0002"]
    assert one.suggest("later") == Searcher.FINISHED
    one.finish("t0002", "completed", 2.0)
    states = [trial.state for trial in trials(tmp_path)]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert not any("same_as" in trial.user_attrs for trial in trials(tmp_path))


def test_one_that_waits_and_is_ended_is_not_trained_any_more(tmp_path: Path) -> None:
    """As the sweep's end does it: all that are open fail, one after another."""
    one = listed(tmp_path, 3)
    drain(one)
    for trial in one.unfinished():
        one.finish(trial["trial_id"], "failed", None, "no pack can be started")
    assert drain(one) == []
    assert one.suggest("later") == Searcher.FINISHED
    assert [trial.state for trial in trials(tmp_path)] == 3 * [TrialState.FAIL]


def test_one_that_has_diverged_would_diverge_again(tmp_path: Path) -> None:
    one = listed(tmp_path, 3)
    one._agenda.searched = 2
    drain(one)
    twins = one.finish("t0000", "diverged", None, "no better than guessing")
    why = "same configuration as t0000: no better than guessing"
    assert [(twin.status, twin.reason) for twin in twins] == [("diverged", why)]
    one._agenda.searched = 3
    assert drain(one) == []
    assert [trial.state for trial in trials(tmp_path)] == 3 * [TrialState.FAIL]


def test_a_twin_is_not_confirmed_beside_the_one_that_it_is(tmp_path: Path) -> None:
    chosen = spec(
        sampler="grid", space={"quantizer": ["none"], "learning_rate": [1e-3, 2e-3], "rank": [4, 8]}, trials=4
    )
    chosen = chosen.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=1)})
    one = OptunaSearcher(chosen, tmp_path / "study.journal", essence=lambda c: None if "confirms" in c else rates(c))
    handed = [one.suggest("a"), one.suggest("b")]
    assert one.suggest("c") is None
    for loss, each in enumerate(handed):
        assert isinstance(each, dict)
        one.finish(each["trial_id"], "completed", 2.0 + loss)
    assert [each["config"]["confirms"] for each in drain(one)] == ["t0000", "t0002"]
