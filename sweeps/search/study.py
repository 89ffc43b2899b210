"""The Optuna study on disk: opened, and its trials set aside and taken up again, for which Optuna has no public call.

The only place that touches Optuna's private parts (`tests/contracts/test_optuna.py` holds them).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweeps.spec.spec import Spec


def open_study(spec: Spec, journal: Path) -> optuna.Study:
    """The study in `journal`, made if there is none, with the sampler that the spec asks for."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(journal), study_name=spec.name, direction="minimize", load_if_exists=True
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


def read_study(journal: Path) -> optuna.Study:
    """The one study in `journal`, to look at."""
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


def _storage(journal: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(journal)))
