"""Ray Tune's trials without a process each. Written for the Ray release that pyproject.toml pins.

A trial of Tune's is an actor: an interpreter, 110 MB, a placement group, some seconds of CPU until it is there. A trial of
ours trains in a pack, and all that its actor ever did was to wait for the next result. So the controller gets another
manager of actors, which starts none: it begins trials at a `Feed` and hands on what comes from there, in this process.
Searcher, scheduler, callbacks and stopper are called by Tune's own code, as ever.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import ray
from ray import tune
from ray.air._internal import usage
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune import Callback
from ray.tune.execution import tune_controller

OWN: Final = ("__trial_info__", "__stdout_file__", "__stderr_file__")
"""Keys that Tune adds to the configuration of an actor."""


class Feed(Protocol):
    """Where the results of trials come from. Trials go by our own ids."""

    def begin(self, config: dict[str, Any]) -> None:
        """A trial begins; `config` is what the searcher gave for it."""

    def proceed(self, trial_id: str) -> None:
        """Its last result is taken, and it is not stopped for it."""

    def next(self, timeout: float) -> tuple[str, dict[str, Any] | Exception] | None:
        """What came next, of whichever trial: a result, or why there will be no more of it.

        Of each trial in order. None: nothing came within `timeout` seconds.
        """


class Elsewhere(tune.Trainable):  # type: ignore[misc]
    """What Tune has for a trial's class: it wants one by name. No object of it is ever made."""


@contextlib.contextmanager
def trials_from(feed: Feed) -> Iterator[type[Elsewhere]]:
    """Every search that begins meanwhile has its results from `feed`; gives the trainable to tell Tune of.

    Nor does Tune count callbacks for its statistics, for which it would import each tracker that is installed, asked for or
    not: one to several seconds of the driver's, while the pack starts on the same cores.
    """
    manager, count = tune_controller.RayActorManager, usage.tag_callbacks
    tune_controller.RayActorManager = lambda resource_manager: Trials(feed)
    usage.tag_callbacks = lambda callbacks: False
    try:
        yield Elsewhere
    finally:
        tune_controller.RayActorManager, usage.tag_callbacks = manager, count


class NoStatistics(Callback):  # type: ignore[misc]
    """Lets go of what Tune has counted of a trial, when it has ended: six statistics of each number of its results, 30 kB,
    most of all that is kept of it in the driver. Nothing here reads them."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped."""
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()


def _nobody(*_: Any) -> None: ...


@dataclass(slots=True)
class _Running:
    """A trial that has begun."""

    config: dict[str, Any]
    on_result: Callable[..., None] = _nobody
    on_error: Callable[..., None] = _nobody
    """Whom to tell of its next result."""
    asked: float = field(default_factory=time.time)
    """When that was asked for."""
    results: int = 0
    seconds: float = 0.0
    """That were waited for them."""


class Trials:
    """Stands for Tune's `RayActorManager`: as much of it as the controller uses for trials that are neither saved, paused
    nor used again (`tests/contracts/test_ray_trials.py` holds what that is).

    What Tune calls an actor is a trial here: added, it waits until the controller yields (`next`), then it is live until it
    is removed.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._count = 0
        self._added: dict[TrackedActor, dict[str, Any]] = {}
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[None, None]] = {}
        """Read by the controller, which asks nothing of an actor that is None."""
        self._running: dict[TrackedActor, _Running] = {}
        self._by_id: dict[str, TrackedActor] = {}
        self._origin = {"pid": os.getpid(), "hostname": platform.node(), "node_ip": ray.util.get_node_ip_address()}

    # ---- what the controller asks

    @property
    def num_pending_actors(self) -> int:
        return len(self._added)

    @property
    def num_live_actors(self) -> int:
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_total_actors(self) -> int:
        return self.num_pending_actors + self.num_live_actors

    @property
    def num_actor_tasks(self) -> int:
        return len(self._running)

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        return False

    def get_live_actors_resources(self) -> dict[str, float]:
        return {}

    # ---- what the controller does

    def add_actor(
        self,
        cls: Any,
        kwargs: dict[str, Any],
        resource_request: Any,
        *,
        on_start: Callable[[TrackedActor], None],
        on_stop: Callable[[TrackedActor], None],
        on_error: Callable[[TrackedActor, Exception], None],
    ) -> TrackedActor:
        self._count += 1
        tracked_actor = TrackedActor(self._count, on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._added[tracked_actor] = {key: value for key, value in kwargs["config"].items() if key not in OWN}
        return tracked_actor

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        """Gives False, as for an actor that never ran: there is no end of a process to wait for."""
        self._added.pop(tracked_actor, None)
        self.clear_actor_task_futures(tracked_actor)
        if self._live_actors_to_ray_actors_resources.pop(tracked_actor, None) and tracked_actor._on_stop:
            tracked_actor._on_stop(tracked_actor)
        return False

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """What comes for it from now on is nobody's."""
        if running := self._running.pop(tracked_actor, None):
            self._by_id.pop(running.config["trial_id"], None)

    def cleanup(self) -> None:
        self.__init__(self._feed)  # type: ignore[misc]

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: Any = None,
        kwargs: Any = None,
        on_result: Callable[..., None] | None = None,
        on_error: Callable[..., None] | None = None,
        _return_future: bool = False,
    ) -> None:
        """`train` asks for the trial's next result, `stop` for nothing."""
        if method_name == "stop":
            return
        if method_name != "train" or on_result is None or on_error is None:
            raise NotImplementedError(f"a trial that trains elsewhere was asked for `{method_name}`")
        if (running := self._running.get(tracked_actor)) is not None:
            running.on_result, running.on_error, running.asked = on_result, on_error, time.time()
            if running.results:
                self._feed.proceed(running.config["trial_id"])

    def next(self, timeout: float) -> bool:
        """Begin a trial, or hand on what came next. Gives whether there was something to be done."""
        if self._added:
            tracked_actor = next(iter(self._added))
            config = self._added.pop(tracked_actor)
            self._live_actors_to_ray_actors_resources[tracked_actor] = (None, None)
            self._running[tracked_actor] = _Running(config)
            self._by_id[config["trial_id"]] = tracked_actor
            self._feed.begin(config)
            tracked_actor._on_start(tracked_actor)
            return True
        try:
            came = self._feed.next(timeout)
        except ray.exceptions.RayError as error:
            return self._broke(error, timeout)
        if came is None:
            return False
        trial_id, outcome = came
        if (found := self._by_id.get(trial_id)) is not None:  # else it was stopped meanwhile
            running = self._running[found]
            if isinstance(outcome, Exception):
                running.on_error(found, outcome)
            else:
                running.on_result(found, self._filled(outcome, running))
        return True

    def _broke(self, error: Exception, timeout: float) -> bool:
        """No result will come any more: each trial ends with that, also one that has just begun."""
        if not self._running:
            time.sleep(timeout)
            return False
        for tracked_actor in list(self._running):
            if (running := self._running.get(tracked_actor)) is not None:
                running.on_error(tracked_actor, error)
        return True

    def _filled(self, result: dict[str, Any], running: _Running) -> dict[str, Any]:
        """A result with what `Trainable.train` would add to it: schedulers and trackers look at that."""
        now = datetime.now()
        waited = time.time() - running.asked
        running.results += 1
        running.seconds += waited
        return {
            "done": False,
            "training_iteration": running.results,
            **result,
            **self._origin,
            "date": now.strftime("%Y-%m-%d_%H-%M-%S"),
            "timestamp": int(now.timestamp()),
            "time_this_iter_s": waited,
            "time_total_s": running.seconds,
            "config": running.config,
            "time_since_restore": running.seconds,
            "iterations_since_restore": running.results,
        }
