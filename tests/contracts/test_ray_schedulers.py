"""What the product takes from Ray Tune's schedulers and its cache of actors that nobody promised it: underscore members.

No cluster is started. A failure shows the docstring of its test, which says who relies on what is gone; a failed
import shows who imports the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.execution import tune_controller  # sweeps.onray.actors
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.utils.object_cache import _ObjectCache  # sweeps.onray.actors

# ---- actors that are used again


class _KeepsAll(_ObjectCache):  # type: ignore[misc]
    """As `sweeps.onray.actors` has it."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Iterator[Any]:
        return super().flush_cached_objects(force_all) if force_all else iter(())


def test_the_cache_of_actors() -> None:
    """sweeps.onray.actors: keeps every actor by two underscore members of Tune's cache. Should Tune keep them by itself
    one day, the subclass can go."""
    stock = _ObjectCache(may_keep_one=True)
    assert [stock.cache_object("cpu", name) for name in "abc"] == [True, False, False], "Tune now keeps more than one"
    keeps = _KeepsAll(may_keep_one=True)
    assert all(keeps.cache_object("cpu", name) for name in "abc")
    assert keeps.num_cached_objects == 3
    assert not list(keeps.flush_cached_objects())
    assert keeps.pop_cached_object("cpu") == "a"
    assert list(keeps.flush_cached_objects(force_all=True)) == ["b", "c"]
    assert (keeps.num_cached_objects, keeps.has_cached_object("cpu")) == (0, False)


def test_tune_makes_its_cache_by_a_name_that_can_be_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """sweeps.onray.actors.keep_actors: sets `tune_controller._ObjectCache` before a controller is made."""
    monkeypatch.setattr(tune_controller, "_ObjectCache", _KeepsAll)
    monkeypatch.setattr(tune_controller, "RayActorManager", lambda **_: SimpleNamespace())
    storage = SimpleNamespace(experiment_driver_staging_path=str(tmp_path), experiment_fs_path=str(tmp_path))
    controller = TuneController(
        search_alg=SimpleNamespace(metric=None),
        storage=storage,
        reuse_actors=True,
        resource_manager_factory=lambda: None,
    )
    assert type(controller._actor_cache) is _KeepsAll


# ---- schedulers


class _Trial:
    """All that a scheduler may look at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


SHARED = {"time_attr": "step", "metric": "eval_loss", "mode": "min"}


def test_asha_recalls_what_earlier_trials_reported() -> None:
    """sweeps.onray.schedulers.Asha._recall: `_trial_info[trial_id].on_result(trial, step, _metric_op * value)` enters a
    value into the rungs as a result would be, and nothing of a trial is read but its `trial_id`."""
    asha = AsyncHyperBandScheduler(**SHARED, grace_period=8, reduction_factor=2, max_t=32)
    for name, value in (("gone-a", 1.0), ("gone-b", 2.0)):
        gone = _Trial(name)
        asha.on_trial_add(None, gone)
        asha._trial_info[gone.trial_id].on_result(gone, 8, asha._metric_op * value)
    decided = []
    for name, value in (("worse", 3.0), ("better", 0.5)):
        trial = _Trial(name)
        asha.on_trial_add(None, trial)
        decided.append(asha.on_trial_result(None, trial, {"step": 8, "eval_loss": value}))
    assert decided == [TrialScheduler.STOP, TrialScheduler.CONTINUE]


def test_the_median_rule_recalls_what_earlier_trials_reported() -> None:
    """sweeps.onray.schedulers.Median._recall: `_results[trial]` is a list of results, of which the step and the metric
    are read; a trial without an entry there has an empty one."""
    median = MedianStoppingRule(**SHARED, grace_period=8, min_samples_required=3, min_time_slice=math.inf)
    for number in range(3):
        gone = _Trial(f"gone-{number}")
        median.on_trial_add(None, gone)
        median._results[gone].append({"step": 8, "eval_loss": 1.0})
    decided = []
    for name, value in (("worse", 3.0), ("better", 0.5)):
        trial = _Trial(name)
        median.on_trial_add(None, trial)
        decided.append(median.on_trial_result(None, trial, {"step": 8, "eval_loss": value}))
    assert decided == [TrialScheduler.STOP, TrialScheduler.CONTINUE]


@pytest.mark.parametrize(("slice_", "decided"), [(math.inf, "CONTINUE"), (0, "PAUSE")])
def test_an_endless_time_slice_pauses_nobody(slice_: float, decided: str) -> None:
    """sweeps.onray.schedulers.make_scheduler: `min_time_slice=inf`; a trial cannot be paused, its pack goes on."""
    median = MedianStoppingRule(**SHARED, grace_period=8, min_samples_required=3, min_time_slice=slice_)
    controller = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status=Trial.PENDING)])
    trial = _Trial("a")
    median.on_trial_add(controller, trial)
    found = [median.on_trial_result(controller, trial, {"step": step, "eval_loss": 1.0}) for step in (8, 16)]
    assert (found[-1] if slice_ else found[0]) == decided
    assert TrialScheduler.CONTINUE == "CONTINUE"
