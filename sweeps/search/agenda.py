"""What the trials of a sweep are to be, in their order: planned ones, those left to the sampler, repeats of the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import optuna

from sweeps.search.bounds import Bounds
from sweeps.search.confirm import REPEATS, Choose, most, repeats
from sweeps.search.metric import CLONES, name_of
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

SEARCH_ENDED: Final = "search_ended"
"""Attribute of a study whose search has ended before `search.trials`: why."""
ASKED: Final = "search_asked"
"""Attribute of a study: what was asked for when that was said. Where a spec asks for more by now, the search goes on."""


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
        self._confirmed = 0 if spec.confirm is None else most(spec.confirm, self._space)
        self._grid = len(self._plan) if spec.search.sampler == "grid" else None
        self.clones = 0
        """Trials that a person made of others."""
        self._repeats: list[dict[str, Any]] | None = None
        """What is to be confirmed: known when the search has ended."""
        self.count = 0
        """Trials handed out or ended."""
        self._confirming = 0
        """Those of them that confirm."""
        self._confirmed_as: set[tuple[str, int]] = set()
        """What they confirm, and on which seed."""
        self._cloned = 0
        """Those of them that are clones."""
        self.choose: Choose | None = None
        """Asked once for what `confirm` leaves open, when the search has ended."""
        self.confirms: Callable[[int], object] = bool
        """Told how many trials the sweep has, when it is known what is to be confirmed."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher at its start; whom it asks and tells lives on the driver alone."""
        return {**self.__dict__, "choose": None, "confirms": bool}

    @property
    def total(self) -> int:
        """Trials of the whole sweep; with `confirm`, at most."""
        return self.searched + self._confirmed + self.clones

    def counted(self, attributes: Mapping[str, Any]) -> None:
        """A trial with these attributes has been handed out, or had ended before."""
        self.count += 1
        self._confirming += REPEATS in attributes
        if REPEATS in attributes:
            self._confirmed_as.add(_named(attributes[REPEATS]))
        self._cloned += CLONES in attributes

    @property
    def searching(self) -> int:
        """Trials handed out or ended that search."""
        return self.count - self._confirming - self._cloned

    def end_search(self, after: int) -> None:
        """No more than so many trials search."""
        self.searched = after

    def more(self, trials: int, spent: str) -> str:
        """So many more trials search; gives why that cannot be, and nothing where it can.

        Args:
            spent: why no more are asked for anyway.
        """
        if self._grid is not None and self.searched + trials > self._grid:
            return f"the grid has {self._grid} points, of which {self.searched} are asked for"
        if spent:
            return spent
        if self._repeats is not None:
            return "the best are being confirmed already; add them when that has ended"
        self.searched += trials
        return ""

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
            self._confirmed = len(self._repeats)
            self.confirms(self.total)
        for repeat in self._repeats:
            best = self._study.trials[repeat["number"]]
            if (name_of(best), repeat["with"]["seed"]) not in self._confirmed_as:
                return best, repeat["with"]
        return None


def end_early(spec: Spec, study: optuna.Study, why: str) -> None:
    """The search has ended before `search.trials`."""
    study.set_user_attr(SEARCH_ENDED, why)
    study.set_user_attr(ASKED, _asked(spec))


def why_ended(spec: Spec, study: optuna.Study) -> str:
    """Why the search has ended before `search.trials`; nothing where it has not."""
    attributes = study.user_attrs
    return str(attributes.get(SEARCH_ENDED, "")) if attributes.get(ASKED, _asked(spec)) == _asked(spec) else ""


def _asked(spec: Spec) -> list[float | None]:
    return [spec.search.trials, spec.search.hours, spec.search.tokens, spec.search.patience]


def searching(spec: Spec) -> int:
    """How many trials of a sweep search; those that confirm come on top."""
    if spec.search.sampler == "grid":
        return min(spec.search.trials, len(spaces.grid(spec.search.space)))
    return spec.search.trials


def confirming(spec: Spec, study: optuna.Study | None) -> int:
    """How many trials of a sweep confirm its best: at most, as long as none of them has begun."""
    if spec.confirm is None:
        return 0
    if study is None or not any(REPEATS in trial.user_attrs for trial in study.get_trials(deepcopy=False)):
        return most(spec.confirm, spec.search.space)
    return len(repeats(study, spec.confirm, spec.search.seed + 1))


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
    clones = sum(CLONES in trial.user_attrs for trial in trials)
    searched = bool(why_ended(spec, study)) or len(trials) - confirming - clones >= searching(spec)
    if not searched or not all(trial.state.is_finished() for trial in trials):
        return False
    if spec.confirm is None:
        return True
    wanted = repeats(study, spec.confirm, spec.search.seed + 1)
    had = {_named(trial.user_attrs[REPEATS]) for trial in trials if REPEATS in trial.user_attrs}
    return {(name_of(trials[one["number"]]), one["with"]["seed"]) for one in wanted} <= had


def _named(repeat: Mapping[str, Any]) -> tuple[str, int]:
    return repeat["confirms"], repeat["seed"]
