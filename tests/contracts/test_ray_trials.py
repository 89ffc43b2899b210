"""What Ray Tune's controller asks of its manager of actors, in whose place the product puts one that starts none.

No cluster is started. A failure shows the docstring of its test, which says who relies on what is gone.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.air._internal import usage
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import _get_trainable_kwargs

from sweeps.onray.trials import trials_from

tune_module = sys.modules["ray.tune.tune"]  # `ray.tune.tune` itself is shadowed where a function has the name

SOURCE = ast.parse(inspect.getsource(TuneController))
MANAGER = {
    "add_actor", "cleanup", "clear_actor_task_futures", "get_live_actors_resources", "is_actor_failed", "is_actor_started",
    "next", "num_actor_tasks", "num_live_actors", "num_pending_actors", "num_total_actors", "remove_actor",
    "schedule_actor_task", "_live_actors_to_ray_actors_resources",
}  # fmt: skip
"""What sweeps.onray.trials.Trials has."""


def of_the_manager() -> list[ast.Attribute]:
    """Every use of `self._actor_manager.…` in the controller."""
    return [
        node
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._actor_manager"
    ]


def test_what_the_controller_uses_of_its_manager() -> None:
    """sweeps.onray.trials.Trials: has what the controller uses of its manager, and no more; `_actor_task_events` is for
    trials that export their models, which ours do not."""
    assert {node.attr for node in of_the_manager()} - {"_actor_task_events"} == MANAGER
    for name in ("add_actor", "remove_actor", "schedule_actor_task", "next", "clear_actor_task_futures", "cleanup"):
        assert callable(getattr(RayActorManager, name))


def test_the_manager_is_made_by_a_name_that_can_be_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """sweeps.onray.trials.trials_from: sets `tune_controller.RayActorManager` before a controller is made, which calls it
    with `resource_manager` alone; and the resources' own manager starts nothing until something is asked of it."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(tune_controller, "RayActorManager", lambda **named: made.append(named) or "ours")
    storage = SimpleNamespace(experiment_driver_staging_path=str(tmp_path), experiment_fs_path=str(tmp_path))
    controller = TuneController(search_alg=SimpleNamespace(metric=None), storage=storage)
    assert controller._actor_manager == "ours"
    assert [set(named) for named in made] == [{"resource_manager"}]


def test_tune_counts_callbacks_by_a_name_that_can_be_replaced() -> None:
    """sweeps.onray.trials.trials_from: Ray 2.60.0, ray/tune/tune.py calls `air_usage.tag_callbacks`, whose count imports
    Comet, MLflow and W&B where they are installed (findings/ray-tune-imports-trackers-that-nobody-uses.sh)."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(tune_module))) if isinstance(node, ast.Call)]
    assert "air_usage.tag_callbacks" in {ast.unparse(call.func) for call in calls}
    assert tune_module.air_usage is usage
    assert "WandbLoggerCallback" in inspect.getsource(usage._count_callbacks)
    stock = usage.tag_callbacks
    with pytest.MonkeyPatch.context() as patched, trials_from(SimpleNamespace()):
        patched.setattr(usage, "_count_callbacks", lambda callbacks: pytest.fail("they are counted"))
        assert tune_module.air_usage.tag_callbacks([]) is False
    assert usage.tag_callbacks is stock


def test_how_the_controller_calls_its_manager() -> None:
    """sweeps.onray.trials.Trials: an actor is added by keywords, removed with `kill` and `stop_future`, asked for `train`
    with `on_result` and `on_error`, and `next` gets a number of seconds."""
    calls = {
        (node.func.attr, tuple(k.arg for k in node.keywords))
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if ast.unparse(node.func.value) == "self._actor_manager"
    }
    assert calls == {
        ("add_actor", ("cls", "resource_request", "kwargs", "on_start", "on_stop", "on_error")),
        ("cleanup", ()),
        ("clear_actor_task_futures", ()),
        ("clear_actor_task_futures", ("tracked_actor",)),
        ("get_live_actors_resources", ()),
        ("is_actor_failed", ()),
        ("is_actor_started", ()),
        ("is_actor_started", ("tracked_actor",)),
        ("next", ("timeout",)),
        ("remove_actor", ("kill",)),
        ("remove_actor", ("kill", "stop_future")),
        ("remove_actor", ("tracked_actor", "kill")),
        ("schedule_actor_task", ("_return_future",)),
        (
            "schedule_actor_task",
            ("tracked_actor", "method_name", "args", "kwargs", "on_result", "on_error", "_return_future"),
        ),
    }


def test_a_removed_actor_that_never_ran_is_not_waited_for() -> None:
    """sweeps.onray.trials.Trials.remove_actor: gives False, so that the controller does not wait for the actor's end; that
    it has ended is said while it is removed, when the controller has let go of it already."""
    heard: list[Any] = []
    tracked = TrackedActor(1, on_stop=lambda actor: heard.append(("stopped", actor)))
    controller: Any = object.__new__(TuneController)

    def remove(tracked_actor: TrackedActor, kill: bool, stop_future: Any) -> bool:
        assert (kill, stop_future) == (False, None)
        tracked_actor._on_stop(tracked_actor)
        return False

    controller._actor_manager = SimpleNamespace(remove_actor=remove, schedule_actor_task=lambda *_, **__: None)
    controller._stopping_actors = {}
    controller._remove_actor(tracked)
    assert heard == [("stopped", tracked)]
    assert not controller._stopping_actors


def test_a_trial_without_an_actor() -> None:
    """sweeps.onray.trials.Trials: the controller takes the actor's handle out of a private member of its manager, and asks
    nothing of one that is None; without one a trial has no result before its first."""
    [first, *_] = [node for node in of_the_manager() if node.attr == "_live_actors_to_ray_actors_resources"]
    assert first
    trial = Trial("trainable", stub=True, trial_id="tunes")
    trial.set_ray_actor(None)
    assert trial.last_result == {"trial_id": "tunes"}


def test_what_an_actor_is_made_of(tmp_path: Any) -> None:
    """sweeps.onray.trials.Trials.add_actor: `kwargs["config"]` is a copy of what the searcher gave, and three keys of
    Tune's own."""
    trial = Trial("trainable", stub=True, trial_id="tunes", config={"trial_id": "t0", "config": {"rank": 4}})
    trial.storage = SimpleNamespace(
        trial_dir_name="t0", experiment_dir_name="tune", trial_driver_staging_path=str(tmp_path)
    )
    trial.relative_logdir = "t0"
    config = _get_trainable_kwargs(trial=trial)["config"]
    assert (config.pop("trial_id"), config.pop("config")) == ("t0", {"rank": 4})
    assert config.keys() == {"__trial_info__", "__stdout_file__", "__stderr_file__"}


@pytest.mark.parametrize(
    "error", [ray.exceptions.RayActorError(), ray.exceptions.RayTaskError("attach", "why", ValueError())]
)
def test_a_failed_task_is_a_failed_trial(error: Exception, tmp_path: Any) -> None:
    """sweeps.onray.trials.Trials.next: whatever the error of a task, the trial's `on_error` is called and nothing else;
    with `max_failures=0` the trial is not begun again."""
    trial = Trial("trainable", stub=True, trial_id="tunes", max_failures=0)
    trial.storage = SimpleNamespace(trial_driver_staging_path=str(tmp_path))
    assert trial.should_recover()
    trial.handle_error(error)
    assert not trial.should_recover()


def test_what_is_counted_of_a_trial() -> None:
    """sweeps.onray.trials.NoStatistics: statistics of each number are kept in two mappings of `run_metadata`, which may be
    empty; the last result is not among them."""
    trial = Trial("trainable", stub=True, trial_id="tunes")
    for loss in (3.0, 2.0):
        trial.update_last_result({"eval_loss": loss, "training_iteration": 1})
        metadata = trial.run_metadata
        assert metadata.metric_analysis.keys() == metadata.metric_n_steps.keys() == {"eval_loss", "training_iteration"}
        metadata.metric_analysis.clear()
        metadata.metric_n_steps.clear()
        assert json.loads(metadata.get_json_state())["metric_analysis"] == {}
        assert trial.last_result["eval_loss"] == loss


def test_trials_begin_without_a_word_of_the_scheduler() -> None:
    """sweeps.onray.schedulers.WaveScheduler: where `choose_trial_to_run` gives None, the controller adds an actor for each
    pending trial, in the order in which they came."""
    controller: Any = object.__new__(TuneController)
    trials = [Trial("trainable", stub=True, trial_id=name) for name in "cab"]
    began: list[Trial] = []
    controller.__dict__ |= {
        "_scheduler_alg": SimpleNamespace(choose_trial_to_run=lambda _: None),
        "_wrapped": lambda: None,
        "_actor_manager": SimpleNamespace(num_pending_actors=0),
        "_actor_cache": SimpleNamespace(num_cached_objects=0, increase_max=lambda _: None),
        "_max_pending_trials": 9,
        "_pending_trials": set(trials),
        "_pending_trials_list": list(trials),
        "_trial_to_actor": {},
        "_staged_trials": set(),
        "_schedule_trial_actor": began.append,
    }
    controller._maybe_add_actors()
    assert began == trials
