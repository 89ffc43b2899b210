"""What the product takes from Ray Tune that nobody promised it: the order of its calls, and what its classes keep.

No cluster is started: stand-ins take the place of what would need one. A failure shows the docstring of its test, which
says who relies on what is gone.
"""

from __future__ import annotations

import inspect
import logging
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.callback import CallbackList
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.search_generator import SearchGenerator
from ray.tune.tune import _setup_signal_catching
from ray.tune.utils.callback import _create_default_callbacks

# ---- the searcher


class _Searcher(Searcher):  # type: ignore[misc]
    """Gives what it was made with, one after the other, and keeps nothing in Tune's checkpoints."""

    def __init__(self, *suggestions: Any) -> None:
        super().__init__(metric="eval_loss", mode="min")
        self.suggestions = list(suggestions)
        self.heard: list[Any] = []

    def suggest(self, trial_id: str) -> Any:
        return self.suggestions.pop(0)

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        self.heard.append(("result", trial_id))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.heard.append(("complete", trial_id, result, error))

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _Trainable(tune.Trainable):  # type: ignore[misc]
    """As `sweeps.onray.trials.Elsewhere`."""


SUGGESTED = {"trial_id": "t0000", "config": {"rank": 4, "confirms": None}}


def test_trials_come_from_suggestions(tmp_path: Path) -> None:
    """sweeps.search.searcher: `trial.config` is what `suggest` gave, unchanged, which callbacks and schedulers read; None
    asks again later, FINISHED ends the search. sweeps.driver.underway: names of trials are made of `trial.config`."""

    def name(trial: Trial) -> str:
        return str(trial.config["trial_id"])

    search = SearchGenerator(ConcurrencyLimiter(_Searcher(SUGGESTED, None, Searcher.FINISHED), max_concurrent=4))
    experiment = Experiment(
        "tune",
        _Trainable,
        num_samples=9,
        storage_path=str(tmp_path),
        trial_name_creator=name,
        trial_dirname_creator=name,
    )
    search.add_configurations([experiment])
    trial = search.next_trial()
    assert trial.config == SUGGESTED
    assert (str(trial), trial.custom_dirname) == ("t0000", "t0000")
    assert search.next_trial() is None
    assert not search.is_finished()
    assert search.next_trial() is None
    assert search.is_finished()
    assert search.metric == "eval_loss"


def test_no_more_trials_than_are_allowed_at_once() -> None:
    """sweeps.driver.underway: `max_concurrent_trials` goes round the searcher, which hears of every trial's end under
    Tune's id, and is not asked while there are enough; one whose answer was None takes no place."""
    inner = _Searcher(SUGGESTED, None, SUGGESTED)
    limited = ConcurrencyLimiter(inner, max_concurrent=1)
    assert limited.suggest("a") == SUGGESTED
    assert limited.suggest("b") is None
    assert len(inner.suggestions) == 2
    limited.on_trial_complete("a", result={"step": 4})
    assert [limited.suggest("c"), limited.suggest("d")] == [None, SUGGESTED]
    assert inner.heard == [("complete", "a", {"step": 4}, False)]


def test_a_searcher_that_saves_nothing(tmp_path: Path) -> None:
    """sweeps.search.searcher: `save` may leave no file; the study's journal has it all."""
    _Searcher().save_to_dir(str(tmp_path), "now")
    assert not list(tmp_path.iterdir())


# ---- trials


def test_a_trial_without_a_result() -> None:
    """sweeps.driver.underway, recorder and progress: `trial.last_result` is a mapping also before the first result, and
    has no `status` then; `trial_id` in it is Tune's own, never ours."""
    trial = Trial("trainable", stub=True, config=SUGGESTED, trial_id="tunes")
    assert trial.last_result == {"trial_id": "tunes"}
    assert trial.config is SUGGESTED
    assert trial.should_stop({"done": True})
    assert not trial.should_stop({"done": False, "status": "running"})
    assert not trial.should_checkpoint()


# ---- the order of calls


class _Log(list[Any]):
    """Called whatever by whatever name, it keeps the name; `on_trial_result` of a scheduler gives `decision`."""

    def __init__(self, decision: str = "CONTINUE") -> None:
        super().__init__()
        self.decision = decision

    def part(self, part: str) -> Any:
        def call(name: str) -> Any:
            def note(*args: Any, **named: Any) -> Any:
                self.append((part, name))
                return self.decision if part == "scheduler" and name == "on_trial_result" else None

            return note

        return type(part, (), {"__getattr__": lambda _, name: call(name)})()


def _controller(log: _Log, fatal: bool = False) -> Any:
    def stopper(trial_id: str, result: dict[str, Any]) -> bool:
        log.append(("stopper", "__call__"))
        return fatal

    controller: Any = object.__new__(TuneController)
    controller.__dict__ |= {
        "_scheduler_alg": log.part("scheduler"),
        "_search_alg": log.part("searcher"),
        "_callbacks": log.part("callbacks"),
        "_stopper": stopper,
        "_total_time": 0.0,
        "_iteration": 1,
        "_trials": [],
        "_live_trials": set(),
        "_fail_fast": False,
        "_queued_trial_decisions": {},
        "_cached_trial_decisions": {},
    }
    controller._wrapped = controller._validate_result_metrics = controller._mark_trial_to_checkpoint = lambda *_: None
    controller._schedule_graceful_trial_stop = lambda trial: log.append(("controller", "stop"))
    return controller


RESULT = {"step": 8, "eval_loss": 1.0, "status": "running", "done": False}


def test_the_searcher_does_not_hear_of_the_result_that_a_trial_is_stopped_for() -> None:
    """sweeps.search.searcher.on_trial_complete reports it then, once; sweeps.driver.underway reads `last_result`."""
    for decision in (TrialScheduler.CONTINUE, TrialScheduler.STOP):
        log = _Log(decision)
        trial = Trial("trainable", stub=True, trial_id="tunes")
        trial.status = Trial.RUNNING
        _controller(log)._process_trial_result(trial, dict(RESULT))
        told = [("searcher", "on_trial_result")] if decision == TrialScheduler.CONTINUE else []
        order = [("stopper", "__call__"), ("scheduler", "on_trial_result"), *told, ("callbacks", "on_trial_result")]
        assert log == order, decision
        assert trial.last_result["status"] == "running"


def test_the_stopper_comes_before_the_scheduler() -> None:
    """sweeps.driver.underway.search.SweepStopper: hears of a `fatal` result although no scheduler is asked about it."""
    log = _Log()
    trial = Trial("trainable", stub=True, trial_id="tunes")
    _controller(log)._process_trial_result(trial, {**RESULT, "done": True})
    assert log == [("stopper", "__call__"), ("callbacks", "on_trial_result")]


def test_a_stopped_trial_is_completed_with_its_last_result() -> None:
    """sweeps.driver.underway.recorder: `on_trial_complete` is called for every trial that ended or was stopped, after
    scheduler and searcher were, when its last result is in `trial.last_result`."""
    log = _Log()
    trial = Trial("trainable", stub=True, trial_id="tunes")
    trial.status = Trial.RUNNING
    trial.update_last_result(dict(RESULT))
    _controller(log).stop_trial(trial)
    parts = ("scheduler", "searcher", "callbacks")
    assert log == [*((part, "on_trial_complete") for part in parts), ("controller", "stop")]


def test_a_search_that_is_ended_completes_nobody() -> None:
    """sweeps.driver.underway.recorder: where `stop_all` ends the search, no callback hears of the trials that run."""
    log = _Log()
    controller = _controller(log)
    controller._stopper = SimpleNamespace(stop_all=lambda: True)
    controller._trials = [Trial("trainable", stub=True, trial_id="tunes")]
    controller._schedule_trial_stop = lambda trial: log.append(("controller", "stop"))
    controller._stop_experiment_if_needed()
    assert log == [("searcher", "set_finished"), ("controller", "stop")]


def test_callbacks_are_called_by_these_names() -> None:
    """sweeps.driver.underway, recorder and progress: `iteration`, `trials`, `trial`, `result`, by keyword."""
    heard: list[Any] = []

    class Listener(Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            heard.append(("start", trial))

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
            heard.append(("result", trial, result))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            heard.append(("complete", trial))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            heard.append(("error", trial))

    callbacks = CallbackList([Listener()])
    for name in ("on_trial_start", "on_trial_complete", "on_trial_error"):
        getattr(callbacks, name)(iteration=1, trials=[], trial="t")
    callbacks.on_trial_result(iteration=1, trials=[], trial="t", result={})
    assert heard == [("start", "t"), ("complete", "t"), ("error", "t"), ("result", "t", {})]
    assert inspect.signature(Stopper.__call__).bind(None, "tunes", {})
    assert callable(Stopper.stop_all)


# ---- what the Tuner is given


class _DriverOnly:
    """As `sweeps.driver.underway.driver_only`."""

    def __init__(self) -> None:
        self.lock = (number for number in ())  # nothing can pickle a generator

    def __getstate__(self) -> dict[str, Any]:
        return {}


def test_the_tuner_pickles_what_it_is_given(tmp_path: Path) -> None:
    """sweeps.driver.underway.driver_only: why callbacks and the stopper pickle as nothing; and that Tune asks them how."""

    class Listener(_DriverOnly, Callback):  # type: ignore[misc]
        pass

    run = tune.RunConfig(
        name="tune-1",
        storage_path=str(tmp_path),
        callbacks=[Listener()],
        failure_config=tune.FailureConfig(max_failures=2),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        verbose=0,
    )
    search = tune.TuneConfig(
        search_alg=_Searcher(), scheduler=None, num_samples=3, max_concurrent_trials=2, reuse_actors=True
    )
    tune.Tuner(_Trainable, tune_config=search, run_config=run)
    state = pickle.loads((tmp_path / "tune-1" / "tuner.pkl").read_bytes())
    [listener] = state["_run_config"].callbacks
    assert not vars(listener)


def test_environment_variables_of_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.onray.connection.ENVIRONMENT: without them Tune writes files of its own, takes Ctrl-C, draws over the
    display, and writes its state to the sweep's folder every few seconds."""
    from ray.tune.experimental.output import get_air_verbosity

    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    made = _create_default_callbacks([], air_verbosity=None, entrypoint=None, metric=None, mode=None, config={})
    assert not [each for each in made if "Logger" in type(each).__name__]
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        _setup_signal_catching()
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    assert get_air_verbosity(1) is None
    assert "TUNE_GLOBAL_CHECKPOINT_S" in TuneController.__init__.__code__.co_consts


def test_the_trackers_callbacks() -> None:
    """sweeps.driver.underway.trackers: Tune's loggers, and by what name each takes the project."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.air.integrations.wandb import WandbLoggerCallback
    from ray.tune.logger import TBXLoggerCallback

    inspect.signature(TBXLoggerCallback).bind()
    inspect.signature(WandbLoggerCallback).bind(project="sweep")
    inspect.signature(MLflowLoggerCallback).bind(experiment_name="sweep")
    assert all(issubclass(each, Callback) for each in (TBXLoggerCallback, WandbLoggerCallback, MLflowLoggerCallback))
    assert logging.getLogger("ray.tune").parent is logging.getLogger("ray")
