"""What the driver hears of its trials: one call that waits at the pool, however many trials there are.

It is what `sweeps.onray.trials` has its results from. No process stands for a trial: one that begins is said to the pool,
and what the pool has of all of them comes back in one list. That a trial has ended is said to the pool by the driver's
recorder (`sweeps.driver.underway.recorder`), which hears of it in every case.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from bitlora import timeouts
from sweeps.pool.messages import TrialResult
from sweeps.search.cloning.place import Place
from sweeps.search.rules import Wave


class PoolFeed:
    """Results as Ray Tune takes them (`sweeps.onray.trials.Feed`).

    A trial's configuration is `{"trial_id": ours, "config": bitlora.config.trial.TrialConfig as a dict}`, with `reported`,
    the last step that it has reported, where it goes on from an earlier run of the sweep.

    Args:
        pool: the pool's handle.
        heard: told which trials were evaluated together and what they came to, before a result of theirs is handed on.
        placed: gives the place of a trial that begins.
    """

    def __init__(
        self,
        pool: Any,
        heard: Callable[[Wave], object] = bool,
        placed: Callable[[str], Place] = lambda trial_id: Place(),
    ) -> None:
        self._pool = pool
        self._heard = heard
        self._placed = placed
        self._taken: dict[str, int] = {}
        """Results of each trial that were handed on, until it has ended."""
        self._arrived: deque[TrialResult] = deque()
        self._received = 0
        """Results that have arrived here, of all trials."""
        self._call: Any = None
        """The one that waits at the pool."""
        self._attaching: dict[Any, dict[str, Any]] = {}
        """Calls whose answer is not known yet -> the trial that begins."""

    def begin(self, config: dict[str, Any]) -> None:
        """Give the trial to the pool."""
        trial_id, reported = config["trial_id"], config.get("reported")
        place = self._placed(trial_id)
        if reported is not None and place.source is not None:  # a copy has not reported the steps that it has behind it
            reported = max(reported, place.source.step)
        asked = self._pool.attach.remote(
            trial_id, place.config or config["config"], reported, place.source, place.until
        )
        self._attaching[asked] = config

    def go_on(self, trial_id: str, place: Place) -> None:
        """Tell the pool how a trial goes on that has left its slot. Returns when it has heard it; that it is gone is for
        the next result to say."""
        # Calls overtake each other, and of a trial that it does not have yet the pool would hear nothing.
        for call in [call for call, config in self._attaching.items() if config["trial_id"] == trial_id]:
            ray.wait([call])
        while True:
            try:
                ray.get(self._pool.go_on.remote(trial_id, place.config, place.source, place.until))
                return
            except ray.exceptions.ActorUnavailableError:
                time.sleep(timeouts.REPORT_RETRY_S)
            except ray.exceptions.RayActorError:
                return

    def proceed(self, trial_id: str) -> None:
        """Tell its pack to go on at once; where that is lost, the pack does so a little later."""
        self._pool.proceed.remote(trial_id, self._taken[trial_id])

    def next(self, timeout: float) -> tuple[str, dict[str, Any] | Exception] | None:
        """As `Feed.next` has it.

        Raises:
            RayError: the pool is gone.
        """
        if not self._arrived:
            self._fetch(timeout)
            if (failed := self._not_begun()) is not None:
                return failed
        if not self._arrived:
            return None
        result = self._arrived.popleft()
        self._taken[result.trial_id] = self._taken.get(result.trial_id, 0) + 1
        if result.ended:
            del self._taken[result.trial_id]
        self._heard(result.wave)
        # Tune's loggers draw over `timesteps_total`.
        return result.trial_id, {**result.flat(), "timesteps_total": result.step, "done": result.ended}

    def _fetch(self, timeout: float) -> None:
        """Wait for what the pool has."""
        if self._call is None:
            self._call = self._pool.results.remote(self._received)
        if not ray.wait([self._call], timeout=timeout)[0]:
            return
        call, self._call = self._call, None
        try:
            came = ray.get(call)
        except ray.exceptions.ActorUnavailableError:  # a network's hiccup: what was lost is given again
            time.sleep(timeout)
        else:
            self._arrived += came
            self._received += len(came)

    def _not_begun(self) -> tuple[str, Exception] | None:
        """A trial that the pool could not take, and why."""
        if not self._attaching:
            return None
        for call in ray.wait(list(self._attaching), num_returns=len(self._attaching), timeout=timeouts.ATTACH_LOOK_S)[
            0
        ]:
            config = self._attaching.pop(call)
            try:
                ray.get(call)
            except ray.exceptions.ActorUnavailableError:  # it may not have arrived; twice is as once
                self.begin(config)
            except ray.exceptions.RayTaskError as error:
                return config["trial_id"], error
        return None
