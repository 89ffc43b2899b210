"""The searcher over Optuna and the scheduler, as Ray Tune drives them.

What Ray's own OptunaSearch gets wrong is put right here: a pruned trial is told PRUNED and not COMPLETE, so that a
sampler never mixes budgets; a diverged or failed one is told FAIL and does not stay RUNNING for ever; every result is
reported at its own step. The study's journal is the only truth: Tune's checkpoints of the searcher stay empty.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from bitlora.record import Status
from sweeps import space as spaces
from sweeps.spec import Spec

STEP: Final = "step"
METRIC: Final = "eval_loss"
ABANDONED: Final = "the sweep ended before it did"


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes trials out of an Optuna study on disk, and tells the study how each of them ended.

    Lives on the driver. Trials go by our own ids (`t0007`), Tune's are known in here alone.

    Args:
        spec: The sweep.
        journal: The study's file; one that is there already goes on, and counts towards `spec.search.trials`. What a
            dead driver left RUNNING in it is told FAIL.
        metric, mode: The result to minimize, and Tune's word for that.
        again: Ids of trials in the journal to hand out first, with the configuration they had.
        configure: Makes a trial's whole configuration of the values that were chosen for the axes.

    Raises:
        ValueError: the journal has none of the trials in `again`.
    """

    def __init__(
        self,
        spec: Spec,
        journal: Path,
        metric: str = METRIC,
        mode: str = "min",
        again: Sequence[str] = (),
        configure: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._space = spec.search.space
        self._plan = list(spec.search.first)
        """The configurations of the first trials; an axis that is left out is the sampler's."""
        self.total = spec.search.trials
        """Trials of the whole sweep."""
        if spec.search.sampler == "grid":
            self._plan = _ordered(spaces.grid(self._space), self._plan)
            self.total = min(self.total, len(self._plan))
        self._study = _study(spec, journal)
        self._configure = configure
        self._open: dict[str, optuna.Trial] = {}
        self._suggested: dict[str, dict[str, Any]] = {}
        self._ours: dict[str, str] = {}
        """Tune's id -> ours."""
        params = _abandon(self._study)
        self._handed = set(params)
        unknown = [trial_id for trial_id in again if trial_id not in params]
        if unknown:
            raise ValueError(f"{journal}: no trial {', '.join(unknown)}")
        self._again = [(trial_id, params[trial_id]) for trial_id in again]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial for Tune's `trial_id`: `{"trial_id": ours, "config": its configuration}`, or FINISHED."""
        if self._again:
            ours, params = self._again.pop(0)
        elif len(self._handed) < self.total:
            planned = self._plan[len(self._handed)] if len(self._handed) < len(self._plan) else {}
            ours, params = "", spaces.params(self._space, planned)
        else:
            return str(Searcher.FINISHED)
        if params:
            self._study.enqueue_trial(params)
        trial = self._study.ask()
        ours = ours or f"t{trial.number:04d}"
        trial.set_user_attr("trial_id", ours)
        self._open[ours] = trial
        self._ours[trial_id] = ours
        self._handed.add(ours)
        self._suggested[ours] = {"trial_id": ours, "config": self._configure(spaces.suggest(trial, self._space))}
        return self._suggested[ours]

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Report a result to the study: finite ones, each step once."""
        trial = self._open.get(self._ours.get(trial_id, ""))
        value, step = _finite(result.get(self.metric)), result.get(STEP)
        if trial is None or value is None or step is None:
            return
        if step not in self._study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(value, int(step))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tune is done with a trial. How it ended is for `finish` to say: Tune cannot tell pruned from interrupted."""
        # Tune hands the result that the scheduler stopped at to this method alone
        self.on_trial_result(trial_id, result or {})

    def finish(self, trial_id: str, status: Status, value: float | None, reason: str = "") -> None:
        """Tell the study how a trial ended. The first word counts: whatever is said later of the same trial is dropped.

        Args:
            trial_id: Ours.
            value: The final result of a completed trial; one that is not finite is told FAIL. A pruned trial's is the
                last that was reported.
            reason: Kept as a user attribute beside the status.

        Raises:
            KeyError: no such trial was ever handed out.
        """
        if trial_id not in self._handed:
            raise KeyError(trial_id)
        trial = self._open.pop(trial_id, None)
        if trial is None:
            return
        trial.set_user_attr("status", status)
        if reason:
            trial.set_user_attr("reason", reason)
        if status == "completed" and _finite(value) is not None:
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)

    def unfinished(self) -> list[dict[str, Any]]:
        """What `suggest` gave for the trials that have not ended, oldest first."""
        return [self._suggested[trial_id] for trial_id in self._open]

    def close(self) -> None:
        """Nothing stays RUNNING: tell FAIL of all that have not ended."""
        for trial_id in list(self._open):
            self.finish(trial_id, "interrupted", None, ABANDONED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new searcher over the same journal goes on."""


def make_scheduler(spec: Spec, max_steps: int) -> TrialScheduler | None:
    """The scheduler of a sweep whose full trials take `max_steps` optimizer steps; None: nobody is stopped."""
    shared = {"time_attr": STEP, "metric": METRIC, "mode": "min"}
    grace = min(spec.scheduler.grace, max_steps)
    if spec.scheduler.name == "asha":
        return Asha(**shared, grace_period=grace, reduction_factor=spec.scheduler.reduction, max_t=max_steps)
    if spec.scheduler.name == "median":
        # An endless time slice: where Tune has too few trials for a median, it would else pause this one for another
        return Median(**shared, grace_period=grace, min_samples_required=3, min_time_slice=math.inf)
    return None


class _FiniteOnly:
    """A result without a finite metric decides nothing, and never becomes something that others are held against."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if _finite(result.get(METRIC)) is None:
            return str(TrialScheduler.CONTINUE)
        return super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc, no-any-return]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if _finite(result.get(METRIC)) is not None:
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class Asha(_FiniteOnly, AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving (arXiv 1810.05934)."""


class Median(_FiniteOnly, MedianStoppingRule):  # type: ignore[misc]
    """The median stopping rule of Google Vizier."""


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _study(spec: Spec, journal: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=spec.name,
        direction="minimize",
        load_if_exists=True,
    )
    # a study that goes on must not draw once more what it drew first
    seed = (spec.search.seed + len(study.trials)) % 2**32
    if spec.search.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=spec.search.startup, multivariate=True, group=True, constant_liar=True
            )
    else:
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    return study


def _abandon(study: optuna.Study) -> dict[str, dict[str, Any]]:
    """Tell FAIL of what a dead driver left behind; the Optuna parameters of each trial ever handed out, by our id."""
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs["trial_id"]: trial.params for trial in trials if "trial_id" in trial.user_attrs}


def _ordered(grid: list[dict[str, Any]], first: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The grid's points, those that `first` names in front."""
    ranks = [next((rank for rank, one in enumerate(first) if one.items() <= row.items()), len(first)) for row in grid]
    return [row for _, row in sorted(zip(ranks, grid, strict=True), key=lambda pair: pair[0])]
