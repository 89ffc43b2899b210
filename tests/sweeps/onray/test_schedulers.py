"""The scheduler driven by hand. What its rules decide is in `tests/sweeps/search/test_rules.py`."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler

from bitlora.config.trial import TrialConfig
from sweeps.onray.schedulers import WaveScheduler, make_scheduler
from sweeps.search.cloning.place import Place, Source
from sweeps.search.cloning.population import Population
from sweeps.spec.space import Range
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


@pytest.mark.parametrize("again", [False, True])
def test_one_that_ended_at_a_plateau_is_known_at_later_rungs_by_its_best(again: bool) -> None:
    """Also where the sweep goes on; one that has taken all its steps stands where it was."""
    curves = {"a": [(8, 1.0), (12, 1.2)], "b": [(8, 1.3)], "c": [(8, 5.0)], "d": [(8, 6.0)]}
    scheduler = make_scheduler(spec(), 32, curves if again else None, short=["a"])
    if not again:
        assert decide(scheduler, {trial: curve[0][1] for trial, curve in curves.items()}, 8)["a"] == GO
        scheduler.heard({"a": (12, 1.2)})
        last = result(12, 1.2, "completed")
        scheduler.on_trial_complete(None, SimpleNamespace(config={"trial_id": "a", "config": {"steps": 32}}), last)
    assert decide(scheduler, {"b": 1.1}, 16) == {"b": STOP}
    other = make_scheduler(spec(), 32, curves)
    assert decide(other, {"b": 1.1}, 16) == {"b": GO}


def test_trials_begin_without_it() -> None:
    assert isinstance(make_scheduler(spec("none"), 32), WaveScheduler)
    assert make_scheduler(spec(), 32).choose_trial_to_run(None) is None  # type: ignore[func-returns-value]


# ---- a population


class Member(TuneTrial):
    @property
    def config(self) -> dict[str, Any]:
        return {"trial_id": str(self), "config": CONFIGS[str(self)]}


FIXED: dict[str, Any] = {
    "quantizer": "none", "activations": "full", "rank": 4, "alpha": 8.0, "scaling": "lora", "weight_decay": 0.0,
    "learning_rate": 1e-3, "batch_size": 2, "micro_batch": None, "max_grad_norm": 1.0, "schedule": "cosine",
    "warmup": 0.1, "floor": 0.0, "steps": 32, "eval_every": 4, "seed": 0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"t000{number}": {**FIXED, "dropout": number / 10} for number in range(3)},
    "t0009": {**FIXED, "dropout": 0.0, "confirms": "t0000"},
}
DEFAULTS = {
    key: value for key, value in TrialConfig(**CONFIGS["t0000"]).model_dump(mode="json").items() if key not in FIXED
}
del DEFAULTS["dropout"]
DROPOUT = Range(0.0, 0.5)
MEMBERS = [Member(name) for name in ("t0000", "t0001", "t0002")]


def populated(said: list[tuple[str, Place]], decided: dict[int, Any] | None = None, **past: Any) -> Any:
    of = spec("pbt").model_copy(
        update={"search": spec("pbt").search.model_copy(update={"space": {"dropout": DROPOUT}})}
    )
    population = Population(of, 32, 3, decided or {})
    made = make_scheduler(of, 32, past, population)
    made.go_on = lambda trial_id, place: said.append((trial_id, place))
    return made


def test_all_of_a_population_go_on_when_the_last_has_come() -> None:
    said: list[tuple[str, Place]] = []
    made = populated(said)
    for member in MEMBERS:
        made.on_trial_add(None, member)
        assert made.place(str(member)).until == 8
    made.on_trial_add(None, Member("t0009"))
    assert made.place("t0009") == Place()  # one that confirms is none
    for member, loss in zip(MEMBERS, (1.0, 2.0), strict=False):
        assert made.on_trial_result(None, member, result(8, loss)) == GO
    made.on_trial_result(None, Member("t0009"), result(8, 0.1))
    assert said == []
    assert made.on_trial_result(None, MEMBERS[2], result(8, math.nan)) == GO  # it has diverged
    assert [(name, place.source, place.until) for name, place in said] == [
        ("t0000", Source("t0000", 8), 16),
        ("t0001", Source("t0001", 8), 16),
        ("t0002", Source("t0000", 8), 16),
    ]


def test_a_population_waits_for_nobody_who_has_ended() -> None:
    said: list[tuple[str, Place]] = []
    made = populated(said)
    for member in MEMBERS:
        made.on_trial_add(None, member)
        made.place(str(member))
    made.on_trial_result(None, MEMBERS[0], result(8, 1.0))
    made.on_trial_result(None, MEMBERS[1], result(8, 2.0))
    made.on_trial_error(None, MEMBERS[2])
    assert [(name, place.source) for name, place in said] == [
        ("t0000", Source("t0000", 8)),
        ("t0001", Source("t0000", 8)),
    ]


def test_a_population_whose_last_had_come_before_the_sweep_was_killed_goes_on_at_once() -> None:
    """Those that the pool has are told; the others have their places when it is given them."""
    said: list[tuple[str, Place]] = []
    made = populated(said, None, t0000=[(4, 3.0), (8, 1.0)], t0001=[(8, 2.0)], t0002=[(8, 3.0)])
    for member in MEMBERS[:2]:
        made.on_trial_add(None, member)
        assert made.place(str(member)) == Place(None, 8, {**CONFIGS[str(member)], **DEFAULTS})
    made.on_trial_add(None, MEMBERS[2])
    assert [name for name, _ in said] == ["t0000", "t0001"]
    assert made.place("t0002").source == Source("t0000", 8)


def test_tune_can_write_it_whatever_it_holds_on_to() -> None:
    made, lock = populated([]), threading.RLock()
    made.go_on = lambda trial_id, place: lock.acquire()
    cloudpickle.dumps(made)
