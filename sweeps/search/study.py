"""The Optuna study on disk: opened, and its trials set aside and taken up again, for which Optuna has no public call.

The only place that touches Optuna's private parts (`tests/contracts/test_optuna.py` holds them).
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState

from bitlora.files.record import Status
from sweeps.search.bounds import Bounds
from sweeps.search.confirm import REPEATS, repeats
from sweeps.search.earlier import EarlierTrial
from sweeps.search.journal import broken
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

DIVERGED: Final = "diverged"
"""The status of such a trial, and the constraint that it violates."""
MISSES: Final = 50
"""So many suggestions in a row may be beyond `search.where`; then one that fits is drawn from the space itself."""
MOST_REFUSED: Final = 200
"""Of the drafts that were refused a sampler sees so many: what it takes grows with them."""
SEARCH_ENDED: Final = "search_ended"
"""Attribute of a study whose search has ended before `search.trials`: why."""
_TOLD: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_NO_NUMBER: Final = 2**53


class StudyError(ValueError):
    """A journal that cannot be read, in one line for a user."""


@dataclass(frozen=True, slots=True)
class EndedTrial:
    """What the study knows of a trial that has ended."""

    status: Status
    reason: str
    config: dict[str, Any] | None
    """Its whole configuration; None where nothing was chosen yet."""
    value: float | None
    same_as: str = ""
    """The trial whose result it has; empty: it was trained itself."""


def open_study(spec: Spec, journal: Path) -> optuna.Study:
    """The study in `journal`, made if there is none, with the sampler that the spec asks for."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(journal), study_name=spec.name, direction="minimize", load_if_exists=True
    )
    study.sampler = _sampler(spec, study)
    return study


def _sampler(spec: Spec, study: optuna.Study, drafts: optuna.Study | None = None) -> optuna.samplers.BaseSampler:
    # a study that goes on must not draw once more what it drew first
    seed = (spec.search.seed + len(study.trials)) % 2**32
    if spec.search.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SeeingSampler(_SeenStudy(study, drafts, spec.search.startup), seed, spec.search.startup)


class Drafts:
    """What a sampler proposes, to be looked at before it is a trial of the study: what is refused is none, and is nowhere
    in the journal.

    It stands in a study of its own in memory, with trials of earlier sweeps, which are none of this one either. The sampler
    sees all: the study's trials, those, and of the drafts those that were refused, as pruned ones that violate constraints.
    A sweep that goes on knows no draft any more, and learns that anew.
    """

    def __init__(self, spec: Spec, study: optuna.Study, bounds: Bounds | None, earlier: Sequence[EarlierTrial]) -> None:
        self._space, self._bounds = spec.search.space, bounds
        self._chance = Random(spec.search.seed + len(study.trials))
        self.refused = 0
        """Suggestions that were beyond the bounds."""
        self._study = optuna.create_study(direction="minimize")
        self._study.sampler = optuna.samplers.RandomSampler()
        for one in earlier:
            draft = self._ask(one.chosen)
            spaces.suggest(draft, self._space)
            self._study.tell(draft, one.eval_loss)
        self._study.sampler = _sampler(spec, study, self._study)
        study.sampler = optuna.samplers.RandomSampler()  # whose trials are given all their parameters

    def propose(self, planned: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a trial within the bounds.

        Args:
            planned: values of some axes; the sampler chooses the others.
        """
        for _ in range(MISSES):
            draft = self._ask(planned)
            chosen = spaces.suggest(draft, self._space)
            if self._bounds is None or not (over := self._bounds.over(chosen)):
                return self._take(draft)
            for name, much in over.items():
                draft.set_constraint(name, much)
            self._study.tell(draft, state=TrialState.PRUNED)
            self.refused += 1
        assert self._bounds is not None
        draft = self._ask({**planned, **self._bounds.fitting(planned, self._chance)})
        spaces.suggest(draft, self._space)
        return self._take(draft)

    def _take(self, draft: optuna.Trial) -> dict[str, Any]:
        self._study.tell(draft, state=TrialState.FAIL)  # of a draft nothing is learned: it is a trial of the study now
        return draft.params

    def _ask(self, planned: Mapping[str, Any]) -> optuna.Trial:
        if params := spaces.params(self._space, planned):
            self._study.enqueue_trial(params)
        return self._study.ask()


class _SeenStudy:
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
        seen = [_seen(trial) for trial in self._study._get_trials(deepcopy, None, use_cache)]
        if self._drafts is not None:
            seen += self._drafts._get_trials(deepcopy, (TrialState.COMPLETE,))
        if self._drafts is not None and sum(t.state in _TOLD for t in seen) >= self._startup:
            seen += self._drafts._get_trials(deepcopy, (TrialState.PRUNED,))[-MOST_REFUSED:]
        return [trial for trial in seen if states is None or trial.state in states]

    def own(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial that is sampled for. The sampler leaves out what has its number: a draft's is a number of drafts, so it
        has one here that no trial has."""
        if self._drafts is None:
            return trial
        shown = copy.copy(trial)
        shown.number = _NO_NUMBER
        return shown


def _seen(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.FAIL or trial.user_attrs.get("status") != DIVERGED:
        return trial
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED
    return shown


class _SeeingSampler(optuna.samplers.TPESampler):
    """TPE, which hears of divergence, and of what was refused."""

    def __init__(self, seen: _SeenStudy, seed: int, startup: int) -> None:
        super().__init__(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)
        self._seen: Any = seen

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        return super().infer_relative_search_space(self._seen, trial)

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return super().sample_relative(self._seen, self._seen.own(trial), search_space)

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return super().sample_independent(self._seen, self._seen.own(trial), param_name, param_distribution)


def read_study(journal: Path) -> optuna.Study:
    """The one study in `journal`, to look at.

    Raises:
        StudyError: it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=None, storage=_storage(journal))


def reopen(study: optuna.Study, frozen: FrozenTrial) -> optuna.Trial:
    """Take up a trial that has not ended, under its own number."""
    if frozen.state == TrialState.WAITING:
        study._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
    return optuna.Trial(study, frozen._trial_id)


def set_aside(study: optuna.Study, trial: optuna.Trial) -> None:
    """Leave a trial WAITING: for the study it has not ended."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


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


def sync(journal: Path) -> None:
    """Returns when what has been written to the journal is on the disk, and not only with the kernel."""
    with journal.open("rb") as file:
        os.fsync(file.fileno())


class _Journal(JournalFileBackend):
    """Written line by line as Optuna does it, but for the disk, which Optuna waits for at each of them: half a dozen times
    a trial, some milliseconds each. What a process has written outlives it anyway; for the machine there is `sync`."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with get_lock_file(self._lock), Path(self._file_path).open("ab") as file:
            file.write("".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs).encode())


def _storage(journal: Path) -> JournalStorage:
    try:
        return JournalStorage(_Journal(str(journal)))
    except ValueError as error:
        line = broken(journal)
        what = f"line {line} cannot be read; cut the file off before it (head -n {line - 1})" if line else str(error)
        raise StudyError(f"{journal}: {what}") from None
