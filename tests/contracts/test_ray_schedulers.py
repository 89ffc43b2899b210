"""What the product takes from Ray Tune's schedulers that nobody promised it: underscore members.

No cluster is started. A failure shows the docstring of its test, which says who relies on what is gone; a failed
import shows who imports the same.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

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
