"""A trial, as Ray Tune sees it: a light actor that takes a slot in the pool and passes its results on.

It holds no weights and no accelerator. Killed and restarted, it goes on listening to the trial it had: the training is
elsewhere. That a trial has ended is said to the pool by the driver (`sweeps.driver.recorder`), which hears of it in
every case: an actor is also cleaned up when Tune means to restart it.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

from sweeps.pool.messages import TrialResult
from sweeps.pool.pool import POOL


class Trial(tune.Trainable):  # type: ignore[misc]
    """One adapter configuration.

    `config`: `trial_id`, `config` (`bitlora.config.trial.TrialConfig`, as a dict) and, of a trial that goes on from an
    earlier run of the sweep, `reported`: the last step it has reported.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._pool = ray.get_actor(POOL)
        self._attach(config)

    def _attach(self, config: dict[str, Any]) -> None:
        self._id = config["trial_id"]
        self._next: int = ray.get(self._pool.attach.remote(self._id, config["config"], config.get("reported")))

    def step(self) -> dict[str, Any]:
        result: TrialResult = ray.get(self._pool.next_result.remote(self._id, self._next))
        self._next += 1
        # Tune's loggers draw over `timesteps_total`.
        return {**result.flat(), "timesteps_total": result.step, "done": result.ended}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The actor is used again for another trial (`reuse_actors`)."""
        self._attach(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: what a trial is stands in the sweep's folder, written by its pack."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, likewise."""
