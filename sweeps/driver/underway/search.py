"""The search itself: one run of Ray Tune over the pool, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import ray
from ray import tune
from ray.tune import Stopper
from rich.console import Console

from bitlora import timeouts
from bitlora.config.explain import one_line
from bitlora.files.storage import Storage
from sweeps.driver.meanwhile import Heartbeat
from sweeps.driver.prepare import Prepared
from sweeps.driver.requests import Inbox
from sweeps.driver.resources import SLOTS
from sweeps.driver.resume import JOURNAL, began_with, begun_in, look, measured
from sweeps.driver.session import Interrupt
from sweeps.driver.underway.driver_only import DriverOnly
from sweeps.driver.underway.progress import Display
from sweeps.driver.underway.recorder import Recorder
from sweeps.driver.underway.steering import Steering
from sweeps.driver.underway.trackers import callbacks
from sweeps.onray.cluster import HEAD
from sweeps.onray.schedulers import make_scheduler
from sweeps.onray.trials import NoStatistics, trials_from
from sweeps.pack.settings import FAKE_GPUS, PackSettings, measuring
from sweeps.pack.travel import travelling
from sweeps.pool.feed import PoolFeed
from sweeps.pool.pool import AHEAD, INTERRUPTED_REASON, POOL, Pool
from sweeps.search.bounds import Bounds
from sweeps.search.cloning.bandit import Came
from sweeps.search.cloning.population import Changes, Population, attribute, came, came_to, decided
from sweeps.search.first_look import chooser
from sweeps.search.metric import Objective
from sweeps.search.rules import Wave
from sweeps.search.rungs.sequential import make_rungs
from sweeps.search.sampling.choice import sampler_of
from sweeps.search.sampling.prior import rate_prior
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec

CALLS: Final = 8
"""That a pack may have at the pool, beside one for each trial of which it is waited for that its slot is empty: one waits
for commands, the others are answered at once. As many are left to the driver."""


class SweepSearch:
    """One run of Tune over the pool.

    Args:
        token: by which packs know the sweep's folder.
        resources: of one worker of a pack.
        limits: the fewest packs, and the most.
        patience: how long a pack may wait for a machine, in seconds.
        host: the class of the actors that run the packs.
        elsewhere: packs may be on other machines.
    """

    def __init__(
        self,
        spec: Spec,
        prepared: Prepared,
        storage: Storage,
        token: str,
        resources: dict[str, float],
        limits: tuple[int, int],
        patience: float,
        host: Any,
        elsewhere: bool,
    ) -> None:
        self._spec = spec
        self._prepared = prepared
        self._storage = storage
        slots = spec.resources.slots
        if slots == "auto":
            slots = SLOTS["gpu" if resources.get("GPU") else "cpu"]
        # what is chosen ahead is chosen before it is known what those before it came to, by which a model chooses
        self._at_once = slots * limits[1] + (0 if sampler_of(spec.search) == "gp" else AHEAD)
        self._past, self._budget = look(storage.folder), prepared.trial(spec, {}).steps
        self._objective = Objective.of_spec(spec.search.metric, spec.metrics)
        curves, eval_rows = self._past.curves(self._objective), len(prepared.dataset.eval)
        settings = PackSettings(
            base=spec.base,
            dtype=spec.train.dtype,
            begun_in=begun_in(storage.folder),
            checkpointing=spec.train.gradient_checkpointing,
            dataset=ray.put(prepared.dataset),
            rows=travelling(prepared.dataset, elsewhere),
            slots=slots,
            slots_given=spec.resources.slots != "auto",
            widest=prepared.widest(spec),
            measured=measured(storage.folder),
            most_workers=limits[1] * spec.resources.workers_per_pack,
            storage=storage,
            token=token,
            rungs=make_rungs(spec.scheduler, self._budget, eval_rows, curves),
            keep=spec.train.keep,
            checkpoint_every=spec.train.checkpoint_every,
            **measuring(spec),
            workers=spec.resources.workers_per_pack,
            resources=resources,
        )
        # Hosts and workers inherit it from the pool, wherever they run.
        env = {name: os.environ[name] for name in (FAKE_GPUS,) if name in os.environ}
        pool = ray.remote(Pool).options(
            name=POOL,
            num_cpus=0,
            resources=HEAD,
            max_concurrency=CALLS + limits[1] * (CALLS + slots + AHEAD),
            runtime_env={"env_vars": env} if env else None,
        )
        self._pool = pool.remote(settings, host, slots, limits, patience)
        self.pack_seconds = 0.0
        """That packs were up, summed; known when the search has ended."""
        self.prior = ""
        """What was known of learning rates before, and what of it; known when it has ended."""
        self.ended_early = ""
        """Why it asked for fewer trials than the spec has; known when it has ended."""

    def run(self, console: Console, heartbeat: Heartbeat, interrupt: Interrupt, lost: Callable[[], str]) -> Recorder:
        """Search, and end everything, however the search ends. Gives the recorder, which knows how the trials ended.

        Args:
            lost: says why the folder is this run's no longer; nothing while it is.
        """
        spec, storage, pool = self._spec, self._storage, self._pool
        objective = self._objective
        prior = rate_prior(spec, self._prepared.base, self._budget)
        searcher = OptunaSearcher(
            spec,
            storage.folder / JOURNAL,
            objective,
            configure=lambda chosen: self._prepared.trial(spec, chosen).model_dump(),
            changed=lambda: storage.push_soon(JOURNAL),
            # Members of a population that begin alike become unlike.
            essence=(lambda config: None) if spec.scheduler.population else self._prepared.essence,
            bounds=Bounds(spec, self._prepared.base),
            earlier=self._prepared.earlier,
            prior=prior,
            steps=self._budget,
        )
        searcher.set_attributes(began_with(self._prepared))
        past = self._past
        searcher.reported = {trial_id: lines[-1].step for trial_id, lines in past.metrics.items() if lines}
        recorder = Recorder(storage, pool, self._prepared, searcher, spec.scheduler.name, spec.train.keep, spec.metrics)
        recorder.resume(past)
        searcher.trained(past.tokens)
        searcher.open_ended = True
        left = searcher.left
        if not searcher.over:
            pool.start.remote()
        sizes = cache(lambda trial_id: self._prepared.bytes(searcher.config(trial_id)))
        population = None
        if spec.scheduler.population:
            kept = searcher.attributes
            population = Population(spec, self._budget, searcher.members, decided(kept), came(kept))
        scheduler = make_scheduler(spec, self._budget, past.curves(objective), population, sizes, past.short)

        def heard(wave: Wave) -> None:
            searcher.heard(wave)
            scheduler.heard(wave)

        feed = PoolFeed(pool, heard, scheduler.place)
        scheduler.go_on = feed.go_on
        rows = self._prepared.dataset.summary.test_rows
        choose = chooser(spec, storage, rows, self._budget, heartbeat.say, fresh=not past.metrics)
        with (
            Display(
                console,
                heartbeat,
                pool,
                list(spec.search.space),
                searcher.total,
                past.best(objective),
                searcher.total - left,
                objective,
                spec.train.keep == "best",
            ) as display,
            trials_from(feed) as trainable,
            Inbox(storage) as inbox,
        ):
            steering = Steering(
                inbox, spec, storage, pool, searcher, recorder, say=display.steered, grown=display.grown
            )
            recorder.tell = display.end_twin
            searcher.ended_early = lambda why: display.search_ends(why, searcher.total)
            searcher.confirm_by(choose, display.grown)
            if population is not None:
                population.decides = lambda rung, changes, came: self._decided(rung, changes, came, searcher, display)
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,  # the searcher says when there are no more
                    max_concurrent_trials=max(self._at_once, searcher.searched if population is not None else 0),
                    reuse_actors=False,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=f"tune-{uuid.uuid4().hex[:6]}",
                    storage_path=str(storage.folder / "logs"),
                    stop=SweepStopper(pool, interrupt, lost, recorder),
                    callbacks=[steering, recorder, display, *callbacks(spec.trackers, spec.name), NoStatistics()],
                    failure_config=tune.FailureConfig(max_failures=0),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            try:
                if not searcher.over:
                    tuner.fit()
            except KeyboardInterrupt:
                recorder.ending = ("interrupted", INTERRUPTED_REASON)
            except Exception as error:  # a full disk, a bug of Tune's: what has been recorded stands, and is told
                logging.getLogger("ray").exception("the search ended")
                recorder.ending = recorder.ending or ("interrupted", f"the search ended: {one_line(error)}")
            finally:
                steering.close()
                self._end(recorder, searcher)
        if searcher.refused:
            heartbeat.say(f"search.where: {searcher.refused} suggestions did not fit, and were not trained")
        self.ended_early = searcher.why_ended
        if prior is not None:
            self.prior = f"{prior.words()}; taken by {searcher.by_prior} trials of this run"
        return recorder

    def _decided(self, rung: int, changes: Changes, by: Came, searcher: OptunaSearcher, display: Display) -> None:
        """A rung of the population was decided: the study is the first to know."""
        searcher.set_attributes(came_to(rung, by) | attribute(rung, changes))
        for trial_id, change in changes.items():
            display.became(trial_id, change["from"], rung, change["config"])

    def _end(self, recorder: Recorder, searcher: OptunaSearcher) -> None:
        """End all that has not ended; that a file cannot be written leaves the sweep interrupted, and nothing lost."""
        try:
            recorder.end_rest()
        except OSError as error:
            recorder.ending = ("interrupted", f"the study could not be written: {one_line(error)}")
        with contextlib.suppress(ray.exceptions.RayError):
            self.pack_seconds = ray.get(self._pool.close.remote(), timeout=timeouts.POOL_CLOSE_S)
        try:
            recorder.close()
            searcher.close()
        except (OSError, ValueError) as error:
            recorder.ending = ("interrupted", f"a record could not be written: {one_line(error)}")


def _name(trial: Any) -> str:
    """Ours, for Tune's files and trackers."""
    return str(trial.config["trial_id"])


class SweepStopper(DriverOnly, Stopper):  # type: ignore[misc]
    """Ends the search when a person says so, when another driver took it over, when the pool gave up starting packs."""

    def __init__(self, pool: Any, interrupt: Interrupt, lost: Callable[[], str], recorder: Recorder) -> None:
        self._pool = pool
        self._interrupt = interrupt
        self._lost = lost
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result.get("fatal"):
            self._recorder.ending = (result["status"], result["reason"])
        return False

    def stop_all(self) -> bool:
        """Asked by Tune several times a second, on the main thread."""
        why = self._lost() or (INTERRUPTED_REASON if self._interrupt.asked else "")
        if why and self._recorder.ending is None:
            self._recorder.ending = ("interrupted", why)
            self._pool.interrupt.remote()
        return self._recorder.ending is not None
