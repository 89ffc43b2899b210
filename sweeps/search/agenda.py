"""What the trials of a sweep are to be, in their order: planned ones, those left to the sampler, repeats of the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import optuna

from sweeps.search.bounds import Bounds
from sweeps.search.confirm import REPEATS, Choose, most, repeats
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

SEARCH_ENDED: Final = "search_ended"
"""Attribute of a study whose search has ended before `search.trials`: why."""


class Agenda:
    """How many trials a sweep has, how many there have been, and what the next is to be.

    Args:
        bounds: what an adapter may be: of a grid, the points beyond it are not tried.
    """

    def __init__(self, spec: Spec, study: optuna.Study, bounds: Bounds | None) -> None:
        self._study, self._confirm, self._space = study, spec.confirm, spec.search.space
        self._first_seed = spec.search.seed + 1
        self._plan = planned(spec, bounds)
        """The configurations of the first trials; an axis that is left out is the sampler's."""
        self.searched = asked = searching(spec)
        """Trials that search."""
        if spec.search.sampler == "grid":
            self.searched = min(asked, len(self._plan))
        self.fewer = f"only {self.searched} points of the grid fit search.where" if self.searched < asked else ""
        """Why these are fewer than the spec has; nothing where they are not."""
        confirmed = 0 if spec.confirm is None else most(spec.confirm, self._space)
        self.total = self.searched + confirmed
        """Trials of the whole sweep; with `confirm`, at most."""
        self._repeats: list[dict[str, Any]] | None = None
        """What is to be confirmed: known when the search has ended."""
        self.count = 0
        """Trials handed out or ended."""
        self._confirming = 0
        """Those of them that confirm."""
        self.choose: Choose | None = None
        """Asked once for what `confirm` leaves open, when the search has ended."""
        self.confirms: Callable[[int], object] = bool
        """Told how many trials the sweep has, when it is known what is to be confirmed."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher at its start; whom it asks and tells lives on the driver alone."""
        return {**self.__dict__, "choose": None, "confirms": bool}

    def counted(self, attributes: Mapping[str, Any]) -> None:
        """A trial with these attributes has been handed out, or had ended before."""
        self.count += 1
        self._confirming += REPEATS in attributes

    @property
    def searching(self) -> int:
        """Trials handed out or ended that search."""
        return self.count - self._confirming

    def end_search(self, after: int) -> None:
        """No more than so many trials search."""
        self.total -= self.searched - after
        self.searched = after

    def point(self) -> dict[str, Any] | None:
        """What is planned of the next trial that searches; None: there is no other."""
        if self.searching >= self.searched:
            return None
        return self._plan[self.searching] if self.searching < len(self._plan) else {}

    @property
    def to_be_chosen(self) -> bool:
        """Is it not chosen yet what is to be confirmed? The search has to end before."""
        return self._confirm is not None and self._repeats is None

    def repeat(self) -> tuple[optuna.trial.FrozenTrial, dict[str, Any]] | None:
        """The next that confirms: which trial it repeats, its seed and what else is its own; None: there is no other."""
        if self._confirm is None:
            return None
        if self._repeats is None:
            self._repeats = repeats(self._study, self._confirm, self._first_seed, self.choose)
            self.total = self.searched + len(self._repeats)
            self.confirms(self.total)
        if self._confirming >= len(self._repeats):
            return None
        chosen = self._repeats[self._confirming]
        return self._study.trials[chosen["number"]], chosen["with"]


def searching(spec: Spec) -> int:
    """How many trials of a sweep search; those that confirm come on top."""
    if spec.search.sampler == "grid":
        return min(spec.search.trials, len(spaces.grid(spec.search.space)))
    return spec.search.trials


def planned(spec: Spec, bounds: Bounds | None) -> list[dict[str, Any]]:
    """The configurations of the first trials, which may leave axes to the sampler: those of `search.first`, and of a grid
    all points that fit, those in front."""
    first = list(spec.search.first)
    if spec.search.sampler != "grid":
        return first
    grid = [point for point in spaces.grid(spec.search.space) if bounds is None or not bounds.over(point)]
    ranks = [next((rank for rank, one in enumerate(first) if one.items() <= row.items()), len(first)) for row in grid]
    return [row for _, row in sorted(zip(ranks, grid, strict=True), key=lambda pair: pair[0])]


def complete(spec: Spec, study: optuna.Study) -> bool:
    """Has every trial of the sweep ended: those that search, and those that confirm the best of them?"""
    trials = study.get_trials(deepcopy=False)
    confirming = sum(REPEATS in trial.user_attrs for trial in trials)
    searched = SEARCH_ENDED in study.user_attrs or len(trials) - confirming >= searching(spec)
    if not searched or not all(trial.state.is_finished() for trial in trials):
        return False
    wanted = spec.confirm and repeats(study, spec.confirm, spec.search.seed + 1)
    return confirming >= len(wanted or ())
