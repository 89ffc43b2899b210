"""A study as its sampler is to see it, for which Optuna has no public call."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.metric import APART, BUDGET, values_in_search

DIVERGED: Final = "diverged"
"""The status of such a trial, and the constraint that it violates."""
MOST_REFUSED: Final = 200
"""Of the drafts that were refused a sampler sees so many: what it takes grows with them."""
TOLD: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_NO_NUMBER: Final = 2**53


class SeenStudy:
    """A study as its sampler is to see it: a trial that has diverged, told FAIL, of which no sampler learns anything, is
    seen as one that was pruned and violates a constraint.

    Args:
        drafts: a study of which completed trials are seen too, and those that were refused: not before there are `startup`
            trials without these, so that as many are drawn at random as without bounds, and of many the last.
    """

    def __init__(self, study: optuna.Study, drafts: optuna.Study | None, startup: int) -> None:
        self._study, self._drafts, self._startup = study, drafts, startup

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for while a copy has nothing yet
            raise AttributeError(name)
        return getattr(self._drafts or self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy, None, use_cache)
        seen = [_seen(trial) for trial in trials if APART not in trial.user_attrs]
        if self._drafts is not None:
            seen += self._drafts._get_trials(deepcopy, (TrialState.COMPLETE,))
        if self._drafts is not None and sum(t.state in TOLD for t in seen) >= self._startup:
            seen += self._drafts._get_trials(deepcopy, (TrialState.PRUNED,))[-MOST_REFUSED:]
        return [trial for trial in seen if states is None or trial.state in states]

    @property
    def told(self) -> int:
        """Trials of which the sampler knows what they came to."""
        return len(self._get_trials(deepcopy=False, states=TOLD))

    def trials(self) -> list[FrozenTrial]:
        """All of them, to look at."""
        return self._get_trials(deepcopy=False)

    def own(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial that is sampled for. The sampler leaves out what has its number: a draft's is a number of drafts, so it
        has one here that no trial has."""
        if self._drafts is None:
            return trial
        shown = copy.copy(trial)
        shown.number = _NO_NUMBER
        return shown


def _seen(trial: FrozenTrial) -> FrozenTrial:
    if trial.state == TrialState.COMPLETE and BUDGET in trial.user_attrs:
        shown = copy.copy(trial)
        shown.values = values_in_search(trial)
        return shown
    if trial.state != TrialState.FAIL or trial.user_attrs.get("status") != DIVERGED:
        return trial
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED
    return shown


class SeeingTPE(optuna.samplers.TPESampler):
    """TPE, which hears of divergence, and of what was refused."""

    def __init__(self, seen: SeenStudy, seed: int, startup: int) -> None:
        super().__init__(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)
        self._seen: Any = seen

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        return super().infer_relative_search_space(self._seen, trial)

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return super().sample_relative(self._seen, self._seen.own(trial), search_space)

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return super().sample_independent(self._seen, self._seen.own(trial), param_name, param_distribution)
