"""The Optuna study on disk: opened, and its trials set aside and taken up again, for which Optuna has no public call.

With `sweeps.search.sampling.seen` the only place that touches Optuna's private parts (`tests/contracts/test_optuna.py`
holds them).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bitlora.files.record import Status
from sweeps.search.journal import broken
from sweeps.search.sampling.samplers import make_sampler
from sweeps.spec.spec import Spec


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
    directions = [StudyDirection.MINIMIZE for _ in spec.search.objectives]
    storage = _storage(journal)
    study = optuna.create_study(storage=storage, study_name=spec.name, directions=directions, load_if_exists=True)
    study.sampler = make_sampler(spec, study)
    return study


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
