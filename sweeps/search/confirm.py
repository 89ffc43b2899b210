"""Winner's luck, taken out: the best configurations once more, on seeds that the search has not used."""

from __future__ import annotations

from collections import Counter
from itertools import count, islice
from statistics import fmean
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.cloning.population import became
from sweeps.search.twins import SAME_AS
from sweeps.spec.keys.confirm import ConfirmConfig
from sweeps.spec.space import Choices, Space

REPEATS: Final = "repeats"
"""Attribute of a trial of the study that confirms another: the seed it has, and which one it `confirms`."""


def most(confirm: ConfirmConfig, space: Space) -> int:
    """How many trials `confirm` asks for at most."""
    domain = space.get(confirm.by or "")
    return confirm.top * confirm.seeds * (len(domain.values) if isinstance(domain, Choices) else 1)


def repeats(study: optuna.Study, confirm: ConfirmConfig, space: Space, first_seed: int) -> list[dict[str, Any]]:
    """What is run again to confirm the search: the number of a trial, and a seed that the search has not used.

    The best are those with the lowest mean over their seeds. All repeats on one seed stand together, so that after an
    interruption each of the best was tried on as many seeds as the others. A trial that has another's result is not beside
    it, unless it stands for another value of `confirm.by`.
    """
    trials = study.get_trials(deepcopy=False)
    searched = [t for t in trials if REPEATS not in t.user_attrs]
    attributes = study.user_attrs

    def stands_for(trial: FrozenTrial) -> Any:
        """Its value of `confirm.by`, in the end."""
        if confirm.by is None:
            return None
        changed = became(attributes, trial.user_attrs.get("trial_id", ""))
        return changed.get(confirm.by, trial.params[confirm.by])

    def beside(trial: FrozenTrial) -> bool:
        first = trials[int(trial.user_attrs[SAME_AS][1:])] if SAME_AS in trial.user_attrs else trial
        return first is trial or stands_for(first) != stands_for(trial)

    groups: dict[str, list[FrozenTrial]] = {}
    for trial in searched:
        if trial.state == TrialState.COMPLETE and trial.value is not None and beside(trial):
            groups.setdefault(repr(sorted((k, v) for k, v in trial.params.items() if k != "seed")), []).append(trial)
    best = sorted(groups.values(), key=lambda group: (fmean(t.value or 0.0 for t in group), group[0].number))
    taken: Counter[Any] = Counter()
    chosen = []
    for group in best:
        value = stands_for(group[0])
        if taken[value] < confirm.top:
            taken[value] += 1
            chosen.append(group[0].number)
    used = {t.params.get("seed") for t in searched}
    seeds = islice((seed for seed in count(first_seed) if seed not in used), confirm.seeds)
    return [{"number": number, "seed": seed} for seed in seeds for number in chosen]
