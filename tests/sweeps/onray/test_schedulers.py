"""The scheduler driven by hand. What its rules decide is in `tests/sweeps/search/test_rules.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from sweeps.onray.schedulers import WaveScheduler, make_scheduler
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
    """As much of Tune's trial as a scheduler looks at; its id is Tune's own."""

    trial_id = "tunes"

    @property
    def config(self) -> dict[str, str]:
        return {"trial_id": str(self)}


def decide(scheduler: Any, losses: dict[str, float], step: int, together: bool = True) -> dict[str, str]:
    """What the scheduler says to each trial's result at `step`, in turn."""
    if together:
        scheduler.heard({name: (step, loss) for name, loss in losses.items()})
    return {name: scheduler.on_trial_result(None, TuneTrial(name), result(step, loss)) for name, loss in losses.items()}


GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_a_wave_is_known_before_its_first_trial_is_judged() -> None:
    losses = {"first": 3.0, "nan": math.nan, "good": 1.0, "late": 0.5, "worse": 2.0}
    said = {"first": STOP, "nan": GO, "good": GO, "late": GO, "worse": STOP}
    assert decide(make_scheduler(spec(), 32), losses, 8) == said
    alone = decide(make_scheduler(spec(), 32), losses, 8, together=False)
    assert alone == {**said, "first": GO, "good": GO, "late": GO}  # where nobody says who was evaluated with it


def test_what_a_trial_comes_to_after_it_was_stopped_counts_for_nobody() -> None:
    """Its pack may be faster than the word."""
    scheduler = make_scheduler(spec(), 32)
    assert decide(scheduler, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, 8) == {"a": GO, "b": GO, "c": STOP, "d": STOP}
    scheduler.heard({name: (16, loss) for name, loss in {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2}.items()})
    assert decide(scheduler, {"a": 0.9, "b": 0.8}, 16, together=False) == {"a": STOP, "b": GO}


@pytest.mark.parametrize(
    ("name", "stopped"),
    # of HyperBand's trials two in four are in the bracket that stops at this step
    [("median", ["t0002", "t0003"]), ("hyperband", ["t0000", "t0001"]), ("bohb", ["t0000", "t0001"]), ("none", [])],
)
def test_every_rule_is_asked(name: str, stopped: list[str]) -> None:
    losses = dict(zip(("t0000", "t0001", "t0002", "t0003", "t0004"), (2.0, 2.1, 2.2, 9.0, 1.0), strict=True))
    said = decide(make_scheduler(spec(name), 16), losses, 8)
    assert [trial for trial, word in said.items() if word == STOP] == stopped


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_knows_what_came_before_it(name: str) -> None:
    """Nobody is judged twice at one step, and newcomers are held against those that ended."""
    past = {f"t000{trial}": [(8, 1.0 + trial), (16, 0.5 + trial)] for trial in range(3)}
    past["t0003"] = [(8, 9.0)]
    scheduler = make_scheduler(spec(name), 32, past)
    assert decide(scheduler, {"t0004": 5.0}, 8) == {"t0004": STOP}
    assert decide(scheduler, {"t0003": 9.0}, 8) == {"t0003": GO}
    if name == "asha":  # that t0003 was the worst at step 8 was let pass then; step 12 is no rung
        assert decide(scheduler, {"t0003": 8.0}, 12) == {"t0003": GO}
    assert decide(scheduler, {"t0003": 8.0}, 16) == {"t0003": STOP}
    assert decide(make_scheduler(spec(name), 32), {"t0004": 5.0}, 8) == {"t0004": GO}


def test_trials_begin_without_it() -> None:
    assert isinstance(make_scheduler(spec("none"), 32), WaveScheduler)
    assert make_scheduler(spec(), 32).choose_trial_to_run(None) is None  # type: ignore[func-returns-value]
