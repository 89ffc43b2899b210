"""The schedulers driven by hand."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from sweeps.onray.schedulers import StopsNobody, make_scheduler
from sweeps.spec.spec import Spec


def spec(scheduler: str = "asha") -> Spec:
    return Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "search": {"space": {"rank": [4, 8]}},
            "scheduler": {"name": scheduler},
        }
    )


def result(step: int, loss: float, status: str = "running", **more: Any) -> dict[str, Any]:
    return {"step": step, "eval_loss": loss, "status": status, **more}


class TuneTrial(str):
    """As much of Tune's trial as a scheduler looks at."""

    @property
    def trial_id(self) -> str:
        return str(self)

    @property
    def config(self) -> dict[str, str]:
        return {"trial_id": str(self)}


TUNE = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
"""A controller with a trial that waits for a place."""


def decide(scheduler: Any, losses: dict[str, float], step: int) -> dict[str, str]:
    """What the scheduler says to each trial's result at `step`, in turn."""
    return {name: scheduler.on_trial_result(TUNE, TuneTrial(name), result(step, loss)) for name, loss in losses.items()}


def test_asha_stops_the_worse_and_nan_is_held_against_nobody() -> None:
    scheduler = make_scheduler(spec(), 32)
    assert isinstance(scheduler, AsyncHyperBandScheduler)
    for name in ("bad", "nan", "dead", "good", "late"):
        scheduler.on_trial_add(TUNE, TuneTrial(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decide(scheduler, {"nan": math.nan}, 8) == {"nan": TrialScheduler.CONTINUE}
        scheduler.on_trial_complete(TUNE, TuneTrial("dead"), result(8, math.nan, "diverged"))
        assert decide(scheduler, {"good": 1.0, "bad": 2.0, "late": 0.5}, 8) == {
            "good": TrialScheduler.CONTINUE,
            "bad": TrialScheduler.STOP,
            "late": TrialScheduler.CONTINUE,
        }
    assert decide(scheduler, {"good": 1.0}, 32) == {"good": TrialScheduler.STOP}


def test_median_stops_the_worse_and_never_pauses() -> None:
    scheduler = make_scheduler(spec("median"), 32)
    assert isinstance(scheduler, MedianStoppingRule)
    assert decide(scheduler, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "nan": math.nan}, 8) == {
        **dict.fromkeys(("a", "b", "c", "nan"), TrialScheduler.CONTINUE),
        "d": TrialScheduler.STOP,
    }


def test_no_scheduler() -> None:
    assert type(make_scheduler(spec("none"), 32)) is StopsNobody


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_knows_what_came_before_it(name: str) -> None:
    """Nobody is judged twice at one step, and newcomers are held against those that ended."""
    past = {f"t000{trial}": [(8, 1.0 + trial), (16, 0.5 + trial)] for trial in range(3)}
    past["t0003"] = [(8, 9.0)]
    scheduler = make_scheduler(spec(name), 32, past, ended=["t0000", "t0001", "t0002"])
    assert scheduler is not None
    for trial in ("t0003", "t0004"):
        scheduler.on_trial_add(TUNE, TuneTrial(trial))
    assert decide(scheduler, {"t0004": 5.0}, 8) == {"t0004": TrialScheduler.STOP}
    if name == "asha":  # that t0003 was the worst at step 8 was let pass then; step 12 is no rung
        assert decide(scheduler, {"t0003": 8.0}, 12) == {"t0003": TrialScheduler.CONTINUE}
    assert decide(scheduler, {"t0003": 8.0}, 16) == {"t0003": TrialScheduler.STOP}
    knows_nothing = make_scheduler(spec(name), 32)
    assert knows_nothing is not None
    knows_nothing.on_trial_add(TUNE, TuneTrial("t0004"))
    assert decide(knows_nothing, {"t0004": 5.0}, 8) == {"t0004": TrialScheduler.CONTINUE}


def test_median_decides_after_a_resume_as_it_would_have_before() -> None:
    """Ray 2.60, tune/schedulers/median_stopping_rule.py: on_trial_complete appends the result at which a trial was stopped
    once more, so that its running mean counts it twice; what is recalled from the disk is there once."""
    curves = {name: {8: 4.0, 16: 1.0} for name in ("a", "b", "c")}
    past = {name: list(curve.items()) for name, curve in curves.items()}
    undisturbed, resumed = make_scheduler(spec("median"), 32), make_scheduler(spec("median"), 32, past, ended=curves)
    assert undisturbed is not None
    for name, curve in curves.items():
        undisturbed.on_trial_add(TUNE, TuneTrial(name))
        for step, loss in curve.items():
            undisturbed.on_trial_result(TUNE, TuneTrial(name), result(step, loss))
        undisturbed.on_trial_complete(TUNE, TuneTrial(name), result(16, 1.0))  # it was stopped there
    said = []
    for scheduler in (undisturbed, resumed):
        scheduler.on_trial_add(TUNE, TuneTrial("new"))
        said.append([decide(scheduler, {"new": loss}, step) for step, loss in ((8, 3.0), (16, 2.2))])
    assert said[0] == said[1]
    assert said[0][-1] == {"new": TrialScheduler.CONTINUE}  # 2.2 is below the mean of 4.0 and 1.0


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_result_that_comes_once_more_changes_nothing(kind: str) -> None:
    """As Tune says it at a trial's end. Ray 2.60's ASHA would enter it into a lower rung that the trial skipped."""
    once, twice = make_scheduler(spec(kind), 64), make_scheduler(spec(kind), 64)
    for scheduler in (once, twice):
        for name in ("one", "other"):
            scheduler.on_trial_add(TUNE, TuneTrial(name))
        assert decide(scheduler, {"one": 3.0}, 20) == {"one": TrialScheduler.CONTINUE}
    assert decide(twice, {"one": 3.0}, 20) == {"one": TrialScheduler.CONTINUE}
    for step, loss in ((8, 3.5), (16, 3.2), (20, 3.1)):
        assert decide(once, {"other": loss}, step) == decide(twice, {"other": loss}, step)
