"""Winner's luck, taken out: the best configurations once more, on seeds that the search has not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from statistics import fmean
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.cloning.population import became
from sweeps.search.metric import APART, at_least_as_good, values_in_search
from sweeps.search.twins import SAME_AS
from sweeps.spec.keys.confirm import MOST_SEEDS, SEEDS, ConfirmConfig
from sweeps.spec.space import Space, axis_of, together

REPEATS: Final = "repeats"
"""Attribute of a trial of the study that confirms another: the seed it has, and which one it `confirms`."""
CHOSEN: Final = "confirm"
"""Attribute of a study whose spec leaves seeds or rows open: what was chosen when the search had ended."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """A configuration that is to be confirmed."""

    params: Mapping[str, Any]
    """What the sampler chose."""
    number: int
    """Of the trial that names it."""
    scored: Mapping[int, str]
    """Seed -> the trial that has its scores on it."""


Choose = Callable[[Sequence[Finalist], Sequence[FrozenTrial]], Mapping[str, int]]
"""The finalists of a search that has ended, and its trials -> `seeds` and `rows` to confirm them with."""


def most(confirm: ConfirmConfig, space: Space) -> int:
    """How many trials `confirm` asks for at most."""
    return most_finalists(confirm, space) * (MOST_SEEDS if confirm.seeds == "auto" else confirm.seeds)


def most_finalists(confirm: ConfirmConfig, space: Space) -> int:
    """How many configurations it asks for at most."""
    return confirm.top * len(together(space, confirm.axes))


def repeats(
    study: optuna.Study, confirm: ConfirmConfig, first_seed: int, choose: Choose | None = None
) -> list[dict[str, Any]]:
    """What is run again to confirm the search: the number of a trial, and what its repeat is configured with: a seed that
    the search has not used, and where they are chosen how many rows it is scored on.

    All repeats on one seed stand together, so that after an interruption each of the best was tried on as many seeds as
    the others.

    Args:
        choose: what `confirm` leaves open; it is asked once, and the study remembers. None: nobody is asked.
    """
    searched = [trial for trial in study.get_trials(deepcopy=False) if REPEATS not in trial.user_attrs]
    best = finalists(searched, confirm, study.user_attrs)
    if confirm.open and CHOSEN not in study.user_attrs and choose is not None and best:
        study.set_user_attr(CHOSEN, dict(choose(best, searched)))
    chosen = study.user_attrs.get(CHOSEN, {})
    seeds = chosen.get("seeds", SEEDS) if confirm.seeds == "auto" else confirm.seeds
    rows = {"confirm_rows": chosen.get("rows")} if confirm.rows == "auto" else {}
    used = {trial.params.get("seed") for trial in searched}
    fresh = islice((seed for seed in count(first_seed) if seed not in used), seeds)
    return [{"number": finalist.number, "with": {"seed": seed, **rows}} for seed in fresh for finalist in best]


def finalists(searched: Sequence[FrozenTrial], confirm: ConfirmConfig, attributes: Mapping[str, Any]) -> list[Finalist]:
    """The configurations with the lowest mean over their seeds, `confirm.top` of each of what `confirm.by` tells apart; of
    two objectives the front, and where that has more than `top`, as many of it as lie evenly from one end to the other. A
    trial that has another's result is not beside it, unless it stands for something else by `confirm.by`.

    Args:
        attributes: the study's.
    """
    by_name = {f"t{trial.number:04d}": trial for trial in searched}

    def stands_for(trial: FrozenTrial) -> tuple[Any, ...]:
        """Its values of the axes of `confirm.by`, in the end."""
        chosen = {axis_of(name): value for name, value in trial.params.items()}
        changed = became(attributes, trial.user_attrs.get("trial_id", ""))
        return tuple(changed.get(axis, chosen[axis]) for axis in confirm.axes)

    def beside(trial: FrozenTrial) -> bool:
        first = by_name.get(trial.user_attrs.get(SAME_AS, ""), trial)
        return first is trial or stands_for(first) != stands_for(trial)

    groups: dict[str, list[FrozenTrial]] = {}
    for trial in searched:
        told = trial.state == TrialState.COMPLETE and APART not in trial.user_attrs
        if told and values_in_search(trial) and beside(trial):
            groups.setdefault(repr(sorted((k, v) for k, v in trial.params.items() if k != "seed")), []).append(trial)
    best = sorted(groups.values(), key=lambda group: (_means(group), group[0].number))
    if best and len(_means(best[0])) > 1:
        best = _along_front(best, confirm.top)
    taken: Counter[Any] = Counter()
    chosen = []
    for group in best:
        value = stands_for(group[0])
        if taken[value] < confirm.top:
            taken[value] += 1
            scored: dict[int, str] = {}
            for trial in group:
                name = trial.user_attrs.get(SAME_AS) or f"t{trial.number:04d}"
                scored.setdefault(int(trial.params.get("seed", 0)), name)
            chosen.append(Finalist(group[0].params, group[0].number, scored))
    return chosen


def _means(group: list[FrozenTrial]) -> list[float]:
    """Of each objective, over the seeds of a configuration."""
    return [fmean(values) for values in zip(*(values_in_search(trial) or [] for trial in group), strict=True)]


def _along_front(groups: list[list[FrozenTrial]], most: int) -> list[list[FrozenTrial]]:
    """Of configurations by their loss, those that no other is as good as in each objective; at most so many, evenly."""
    front: list[list[FrozenTrial]] = []
    for group in groups:
        if not any(at_least_as_good(_means(better), _means(group)) for better in front):
            front.append(group)
    if len(front) <= most:
        return front
    return [front[round(place * (len(front) - 1) / max(1, most - 1))] for place in range(most)]
