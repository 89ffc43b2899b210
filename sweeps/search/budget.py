"""What a search may spend: hours, tokens, trials in a row that are no better. After that no new trial is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.confirm import REPEATS
from sweeps.search.metric import APART, at_least_as_good, values_in_search
from sweeps.spec.keys.search import SearchConfig

SPENT: Final = "search_seconds"
"""Attribute of a study: how long its sweep has searched so far, in all runs of it."""


class SearchBudget:
    """What has been spent of `search.hours`, `search.tokens` and `search.patience`; what an earlier run spent counts.

    Args:
        study: of the sweep. With hours it is told how many are spent at each trial that begins or ends, so that a driver
            that is killed loses no more than since then.
        clock: seconds.
    """

    def __init__(self, asked: SearchConfig, study: optuna.Study, clock: Callable[[], float] = time.monotonic) -> None:
        self._asked, self._study, self._clock = asked, study, clock
        self._began = clock() - float(study.user_attrs.get(SPENT, 0.0))
        self._tokens: dict[str, int] = {}
        """Trial -> those that it was trained on."""
        self._best: list[Sequence[float]] = []
        """What no trial before was as good as; of two objectives in at least one of them."""
        self._no_better = 0
        """Trials that have ended since there was a new best."""
        told = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        for trial in sorted(told, key=lambda trial: (trial.datetime_complete, trial.number)):
            self.ended(trial)

    def trained(self, tokens: Mapping[str, int]) -> None:
        """Trials have been trained on so many tokens each, since their first step."""
        self._tokens |= {trial: max(count, self._tokens.get(trial, 0)) for trial, count in tokens.items()}

    def ended(self, trial: FrozenTrial) -> None:
        """A trial has ended, not with the sweep. One that confirms says nothing of the search, nor does one that a person
        made unlike the others."""
        if REPEATS in trial.user_attrs or APART in trial.user_attrs:
            return
        values = values_in_search(trial) if trial.state == TrialState.COMPLETE else None
        if values is not None and not any(at_least_as_good(best, values) for best in self._best):
            self._best.append(values)
            self._no_better = 0
        else:
            self._no_better += 1

    def note(self) -> None:
        """Leave in the study what is spent of the hours."""
        if self._asked.hours is not None:
            self._study.set_user_attr(SPENT, self._clock() - self._began)

    def spent(self) -> str:
        """Of which of them nothing is left, in words; nothing while something is left of each."""
        hours, tokens, patience = self._asked.hours, self._asked.tokens, self._asked.patience
        if hours is not None and self._clock() - self._began >= hours * 3600:
            return f"search.hours ({hours:g}) are over"
        if tokens is not None and (trained := sum(self._tokens.values())) >= tokens:
            return f"search.tokens ({tokens:,}) are spent: trials were trained on {trained:,}"
        if patience is not None and self._no_better >= patience:
            return (
                f"search.patience ({patience}) is over: so many trials in a row ended without a new best at full budget"
            )
        return ""

    def no_more(self, ended: str = "") -> str:
        """Why more trials would not be asked for, with how much it takes that they are; nothing while something is left of
        each.

        Args:
            ended: what this search has ended by; that stays so, whatever a trial that runs comes to.
        """
        if not (why := ended or self.spent()):
            return ""
        key = why.partition(" (")[0]
        hours = math.ceil((self._clock() - self._began) / 36) / 100
        spent = {
            "search.hours": f"{hours:g}",
            "search.tokens": str(sum(self._tokens.values())),
            "search.patience": str(max(self._no_better, self._asked.patience or 0)),
        }
        return f"{why}; give --resume --set {key}=N with more than {spent[key]}, or null" if key in spent else why
