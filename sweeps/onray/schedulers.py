"""The scheduler: which trials are stopped before their budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from sweeps.search.metric import METRIC, STEP, finite
from sweeps.spec.spec import Spec

Past = Mapping[str, Sequence[tuple[int, float]]]
"""Our id -> (step, eval loss) of each evaluation."""


def make_scheduler(spec: Spec, max_steps: int, past: Past | None = None, ended: Iterable[str] = ()) -> TrialScheduler:
    """The scheduler of a sweep whose full trials take `max_steps` optimizer steps.

    Args:
        past: what trials have reported before this scheduler came, by our ids; each trial is judged once at each step.
        ended: those of them that will not go on.
    """
    shared = {"time_attr": STEP, "metric": METRIC, "mode": "min"}
    grace = min(spec.scheduler.grace, max_steps)
    scheduler: Asha | Median
    if spec.scheduler.name == "asha":
        scheduler = Asha(**shared, grace_period=grace, reduction_factor=spec.scheduler.reduction, max_t=max_steps)
    elif spec.scheduler.name == "median":
        # An endless time slice: where Tune has too few trials for a median, it would else pause this one for another
        scheduler = Median(**shared, grace_period=grace, min_samples_required=3, min_time_slice=math.inf)
    else:
        return StopsNobody()
    scheduler.past = past or {}
    for trial_id in ended:
        scheduler.on_trial_add(None, _Gone(trial_id))
    return scheduler


class _Gone:
    """A trial that ended before this scheduler came, as far as a scheduler looks."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = f"gone-{trial_id}"
        self.config = {"trial_id": trial_id}


class _AllBegin:
    """Every trial that there is may begin, in the order in which they came: the controller sees to that by itself. Tune's
    own schedulers would look through all trials for one, those that have ended first, before each result."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


class _Judge(_AllBegin):
    """What both schedulers have in common.

    A result without a finite metric decides nothing, and never becomes something that others are held against. What a
    trial reported in an earlier run of the sweep is known and not decided again. Nor is a result that comes once more, when
    Tune tells of the end of a trial that was stopped (Ray 2.60: the median rule would count it twice, and ASHA enter it
    into a lower rung that the trial has skipped).
    """

    past: Past

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._judged: dict[str, int] = {}
        """Tune's id of a trial -> the last step of which a result is known."""

    @staticmethod
    def _free(trial: Any) -> bool:
        """Nobody stops a trial that confirms, nor is one that searches held against it."""
        return bool(trial.config.get("config", {}).get("confirms"))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        for step, value in () if self._free(trial) else self.past.get(trial.config["trial_id"], ()):
            if self._is_new(trial, step):
                self._recall(trial, step, value)

    def _is_new(self, trial: Any, step: int) -> bool:
        if step <= self._judged.get(trial.trial_id, 0):
            return False
        self._judged[trial.trial_id] = step
        return True

    def _recall(self, trial: Any, step: int, value: float) -> None:
        raise NotImplementedError

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if self._free(trial) or finite(result.get(METRIC)) is None or not self._is_new(trial, result[STEP]):
            return str(TrialScheduler.CONTINUE)
        return super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc, no-any-return]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not self._free(trial) and finite(result.get(METRIC)) is not None and self._is_new(trial, result[STEP]):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class StopsNobody(_AllBegin, FIFOScheduler):  # type: ignore[misc]
    """Every trial runs to its end."""


class Asha(_Judge, AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving (arXiv 1810.05934)."""

    def _recall(self, trial: Any, step: int, value: float) -> None:
        self._trial_info[trial.trial_id].on_result(trial, step, self._metric_op * value)


class Median(_Judge, MedianStoppingRule):  # type: ignore[misc]
    """The median stopping rule of Google Vizier."""

    def _recall(self, trial: Any, step: int, value: float) -> None:
        self._results[trial].append({STEP: step, METRIC: value})
