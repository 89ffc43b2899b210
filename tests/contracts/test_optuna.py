"""What the product takes from Optuna that nobody promised it: states set past the study, and trials taken up again.

A failure shows the docstring of its test, which says who relies on what is gone.
"""

from __future__ import annotations

import copy
import json
import os
import threading
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FixedTrial, TrialState
from ray import cloudpickle


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tmp_path / "study.journal"


def _study(journal: Path) -> tuple[optuna.Study, JournalStorage]:
    """As `sweeps.search.searcher` opens it, new or not."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="sweep", direction="minimize", load_if_exists=True)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    return study, storage


def _begun(journal: Path) -> optuna.Trial:
    """A trial that has reported once; its driver is gone."""
    trial = _study(journal)[0].ask()
    trial.suggest_categorical("rank", (2, 4, 8))
    trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    trial.report(3.0, 4)
    return trial


def test_a_journal_is_one_file_that_appears_with_the_study(journal: Path) -> None:
    """sweeps.search.searcher, sweeps.driver.underway: study.journal alone is pushed to the store when it has changed; a
    lock lies beside it only while something is written."""
    _begun(journal)
    assert [file.name for file in journal.parent.iterdir()] == [journal.name]


def test_the_only_study_of_a_journal_needs_no_name(journal: Path) -> None:
    """sweeps.driver.resume.changed: `load_study(study_name=None)`, and attributes of the study that last."""
    _study(journal)[0].set_user_attr("data", "fingerprint")
    again = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    assert again.user_attrs == {"data": "fingerprint"}


def test_an_interrupted_trial_waits_with_all_it_had(journal: Path) -> None:
    """sweeps.search.open_trials: `set_trial_state_values(trial._trial_id, WAITING)` of a trial that RUNs keeps its
    parameters, attributes and reported values, for the run of the sweep that goes on with it."""
    trial = _begun(journal)
    trial.set_user_attr("status", "interrupted")
    trial.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    [found] = _study(journal)[0].get_trials(deepcopy=False)
    assert found.state == TrialState.WAITING
    assert not found.state.is_finished()
    assert found.params == trial.params
    assert found.intermediate_values == {4: 3.0}
    assert found.user_attrs == {"status": "interrupted"}


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_trial_is_taken_up_under_its_own_number(journal: Path, interrupted: bool) -> None:
    """sweeps.search.study.reopen: WAITING or (of a driver that died) still RUNNING, `optuna.Trial(study, _trial_id)` is
    the same trial: what was suggested for it is suggested again, and it is told as any other."""
    before = _begun(journal)
    if interrupted:
        before.study._storage.set_trial_state_values(before._trial_id, TrialState.WAITING)
    study, storage = _study(journal)
    [frozen] = study.get_trials(deepcopy=False)
    if frozen.state == TrialState.WAITING:
        assert storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING) is True
    trial = optuna.Trial(study, frozen._trial_id)
    assert trial.number == before.number
    assert trial.suggest_categorical("rank", (2, 4, 8)) == before.params["rank"]
    assert trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True) == before.params["learning_rate"]
    trial.report(2.0, 8)
    study.tell(trial, 2.0)
    [ended] = _study(journal)[0].trials
    assert (ended.state, ended.value, ended.intermediate_values) == (TrialState.COMPLETE, 2.0, {4: 3.0, 8: 2.0})


def test_ask_takes_whatever_waits(journal: Path) -> None:
    """sweeps.search.searcher.suggest: why trials that go on are opened before any new one is asked for: `ask` would hand
    out an interrupted one as if it were new."""
    before = _begun(journal)
    before.study._storage.set_trial_state_values(before._trial_id, TrialState.WAITING)
    study, _ = _study(journal)
    assert study.ask().number == before.number
    assert study.ask().number == before.number + 1


def test_what_is_queued_comes_next_with_its_attributes(journal: Path) -> None:
    """sweeps.search.open_trials: `enqueue_trial(params, user_attrs=…)` before `ask` makes the next trial: parameters that
    are left out are the sampler's, attributes are there before anything is suggested, and empty parameters count."""
    study, _ = _study(journal)
    study.enqueue_trial({"rank": 8}, user_attrs={"repeats": {"seed": 7}})
    trial = study.ask()
    assert trial.user_attrs == {"repeats": {"seed": 7}}
    assert trial.suggest_categorical("rank", (2, 4, 8)) == 8
    assert trial.suggest_int("seed", 0, 9) in range(10)
    study.enqueue_trial({}, user_attrs={"repeats": {"seed": 8}})
    assert study.ask().user_attrs == {"repeats": {"seed": 8}}


def test_a_queued_value_outside_its_range_is_used(journal: Path) -> None:
    """sweeps.spec.space.params holds values against their ranges itself, since Optuna only warns."""
    study, _ = _study(journal)
    study.enqueue_trial({"learning_rate": 5.0})
    with pytest.warns(UserWarning, match="out of range"):
        assert study.ask().suggest_float("learning_rate", 1e-4, 1e-2, log=True) == 5.0


def test_how_trials_are_told(journal: Path) -> None:
    """sweeps.search.open_trials: PRUNED has the last reported value, FAIL none. An infinite value would make a
    COMPLETE trial, so it is told FAIL there."""
    study, _ = _study(journal)
    pruned = _begun(journal)
    study.tell(pruned.number, state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), float("inf"))
    found = [(trial.state, trial.value) for trial in study.trials]
    assert found == [(TrialState.PRUNED, 3.0), (TrialState.FAIL, None), (TrialState.COMPLETE, float("inf"))]
    assert all(trial.state.is_finished() for trial in study.trials)


def test_trials_are_read_without_copies(journal: Path) -> None:
    """sweeps.search.searcher: `get_trials(deepcopy=False)[trial.number]` is that trial, with what was just reported; a step
    that is reported twice keeps its first value, with a warning, so it is not."""
    study, _ = _study(journal)
    trial = study.ask()
    trial.report(3.0, 4)
    assert study.get_trials(deepcopy=False)[trial.number].intermediate_values == {4: 3.0}
    with pytest.warns(UserWarning, match="already reported"):
        trial.report(1.0, 4)
    assert study.get_trials(deepcopy=False)[trial.number].intermediate_values == {4: 3.0}


def test_a_fixed_trial_says_what_is_missing() -> None:
    """sweeps.search.open_trials: the configuration of an ended trial is made again through a `FixedTrial`; one whose
    driver died before all was chosen raises ValueError."""
    fixed = FixedTrial({"rank": 4})
    assert fixed.suggest_categorical("rank", (2, 4)) == 4
    with pytest.raises(ValueError, match="learning_rate"):
        fixed.suggest_float("learning_rate", 1e-4, 1e-2, log=True)


def test_the_sampler_takes_its_options() -> None:
    """sweeps.search.sampling.seen: TPE over groups of axes that hang on each other, told of trials that still run; its
    warning that this is experimental is the one that is silenced."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optuna.samplers.TPESampler(seed=1, n_startup_trials=2, multivariate=True, group=True, constant_liar=True)
    assert {each.category for each in said} <= {optuna.exceptions.ExperimentalWarning}


def test_tpe_knows_axes_that_hang_on_others(journal: Path) -> None:
    """sweeps.spec.space.suggest: a parameter for each branch; the sampler goes on where trials have different ones, some
    of them running, pruned or failed."""
    study, _ = _study(journal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=0, n_startup_trials=2, multivariate=True, group=True, constant_liar=True
        )
    ways = ["complete", "pruned", "failed", "running"]
    for number in range(16):
        trial = study.ask()
        quantizer = trial.suggest_categorical("quantizer", ("none", "ternary"))
        rate = trial.suggest_float(f"learning_rate[quantizer={quantizer}]", 1e-4, 1e-2, log=True)
        trial.report(rate, 4)
        way = ways[number % 4]
        if way == "complete":
            study.tell(trial, rate)
        elif way != "running":
            study.tell(trial, state=TrialState.PRUNED if way == "pruned" else TrialState.FAIL)
    assert len({name for trial in study.trials for name in trial.params}) == 3


def test_a_study_can_be_pickled(journal: Path) -> None:
    """sweeps.search.searcher: Ray's Tuner pickles the searcher with the study in it into its restore file, at the start."""
    _begun(journal)
    study, _ = _study(journal)
    assert len(cloudpickle.loads(cloudpickle.dumps(study)).trials) == 1


# ---- the journal as a file


def test_what_is_written_behind_a_torn_line_is_never_read_again(journal: Path) -> None:
    """sweeps.search.journal.mend: why a torn last line is cut off before a study goes on. Reading passes over it while it
    is the last, and the next line is appended right behind it."""
    _begun(journal)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    assert len(_study(journal)[0].trials) == 1
    with pytest.raises((ValueError, AssertionError, KeyError)):
        _begun(journal)
    with pytest.raises(ValueError, match="line 1 column"):
        _study(journal)


def test_a_line_of_a_journal_is_one_object_of_json(journal: Path) -> None:
    """sweeps.search.journal._whole: so a line that was cut short anywhere is not one."""
    _begun(journal)
    for line in journal.read_bytes().splitlines(keepends=True):
        assert isinstance(json.loads(line), dict)
        assert line.endswith(b"}\n")


def test_every_line_is_waited_for_by_optuna_itself(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.search.study._Journal: why it writes by itself, as Optuna does but for that, by three private parts."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    _begun(journal)
    assert len(synced) == len(journal.read_bytes().splitlines()) > 3
    backend = JournalFileBackend(str(journal))
    assert backend._file_path == str(journal)
    with get_lock_file(backend._lock):
        assert Path(f"{journal}.lock").is_symlink()
    log = {"op_code": 4, "worker_id": "ours", "text": "ü"}
    end = journal.stat().st_size
    backend.append_logs([log, log])
    assert journal.read_bytes()[end:] == 2 * f"{json.dumps(log, separators=(',', ':'))}\n".encode()


def test_the_lock_is_a_link_beside_the_journal_and_held_for_a_write_alone(journal: Path) -> None:
    """sweeps.search.journal: its suffix is `.lock`; to remove it is to give it back; who only reads asks for none."""
    _begun(journal)
    held = JournalFileSymlinkLock(str(journal))
    held.acquire()
    lock = Path(f"{journal}.lock")
    assert lock.readlink() == journal
    assert len(optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal)))).trials) == 1
    lock.unlink()
    assert _study(journal)[0].ask().number == 1
    assert not lock.is_symlink()


def test_a_lock_that_leads_nowhere_is_waited_for_without_end(journal: Path) -> None:
    """sweeps.search.journal._free: why a lock is not left to Optuna, which after its grace period would remove it: of one
    whose journal was moved it cannot tell the age, and asks again at once, for ever."""
    lock = Path(f"{journal}.lock")
    lock.symlink_to(journal.parent / "moved" / journal.name)
    acquired = threading.Event()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so short a grace period is short
        waiting = JournalFileSymlinkLock(str(journal), grace_period=1)
    threading.Thread(target=lambda: waiting.acquire() and acquired.set(), daemon=True).start()
    assert not acquired.wait(2.5)
    lock.unlink()
    assert acquired.wait(5)
    waiting.release()


def test_tpe_reads_a_study_by_one_method() -> None:
    """sweeps.search.sampling.seen: all that TPE knows of trials comes through `_get_trials(deepcopy, states, use_cache)`
    of the study that it is handed, which may stand for the real one."""
    asked: list[object] = []

    class Seen:
        def __init__(self, study: optuna.Study) -> None:
            self.study = study

        def __getattr__(self, name: str) -> object:
            assert name not in ("trials", "get_trials")
            return getattr(self.study, name)

        def _get_trials(self, deepcopy: bool = True, states: object = None, use_cache: bool = False) -> list[object]:
            asked.append(states)
            return []

    class Sampler(optuna.samplers.TPESampler):
        def infer_relative_search_space(self, study, trial):  # type: ignore[no-untyped-def]
            return super().infer_relative_search_space(Seen(study), trial)

        def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
            assert search_space == {}  # of a study without trials
            return super().sample_relative(Seen(study), trial, search_space)

        def sample_independent(self, study, *of):  # type: ignore[no-untyped-def]
            return super().sample_independent(Seen(study), *of)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = Sampler(seed=0, n_startup_trials=1, multivariate=True, group=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for _ in range(3):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("rate", 0, 1))
    assert len(asked) >= 6


def test_tpe_leaves_out_the_trial_of_the_number_that_it_samples_for() -> None:
    """sweeps.search.sampling.seen: a draft, whose number a trial of the study has too, is shown with another."""
    study = optuna.create_study()
    known = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for number in range(8):
        study.add_trial(optuna.trial.create_trial(params={"x": number / 8}, distributions=known, value=float(number)))
    study.ask()
    drawn = []
    for number in (0, 1000):  # the best trial's, and nobody's
        own = copy.copy(study.get_trials(deepcopy=False)[-1])
        own.number = number
        each = []
        for seed in range(4):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
                )
            space = sampler.infer_relative_search_space(study, own)
            each.append(sampler.sample_relative(study, own, space)["x"])
        drawn.append(each)
    assert drawn[0] != drawn[1]
