"""From a spec to a finished sweep: Ray, the pool, Tune, the records, the report, the exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import ray
from ray import tune
from ray.tune import Stopper
from rich.console import Console

from bitlora import timeouts
from bitlora.config.explain import one_line
from bitlora.files.baseline import BASE
from bitlora.files.record import DATA, KEPT, RUNS, Status
from bitlora.files.storage import Storage
from bitlora.files.writing import write_text
from reports.pages.summary import SUMMARY
from reports.report import write_report
from sweeps.driver.driver_only import DriverOnly
from sweeps.driver.kept import MOST_BYTES, keep
from sweeps.driver.meanwhile import Heartbeat
from sweeps.driver.prepare import Prepared
from sweeps.driver.progress import Display, outcome
from sweeps.driver.provenance import Run, git_state, machines, note, now
from sweeps.driver.recorder import Recorder
from sweeps.driver.resources import SLOTS, pack_limits, worker_resources
from sweeps.driver.resume import EXIT_CODE, JOURNAL, SPEC, began_with, begun_in, changed, look, measured
from sweeps.driver.session import Interrupt, alone, hold_gpus, keep_logs, log_to
from sweeps.driver.trackers import callbacks, missing
from sweeps.onray.cluster import HEAD, Growth, growth
from sweeps.onray.connection import ENVIRONMENT, connect
from sweeps.onray.schedulers import make_scheduler
from sweeps.onray.trials import NoStatistics, trials_from
from sweeps.pack.host import PackHost
from sweeps.pack.settings import FAKE_GPUS, PackSettings
from sweeps.pack.travel import travelling
from sweeps.pool.feed import PoolFeed
from sweeps.pool.pool import AHEAD, INTERRUPTED_REASON, POOL, Pool
from sweeps.search.bounds import Bounds
from sweeps.search.journal import mend
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.sequential import make_rungs
from sweeps.spec.errors import InputError
from sweeps.spec.spec import Spec, dump_spec

DONE, NO_RESULT, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
"""The exit codes of a sweep that began; bad input is the command line's (`sweeps.cli.app.BAD_INPUT`)."""
CALLS: Final = 8
"""That a pack may have at the pool, beside one for each trial of which it is waited for that its slot is empty: one waits
for commands, the others are answered at once. As many are left to the driver."""


def run_sweep(
    spec: Spec,
    prepared: Prepared,
    storage: Storage,
    console: Console,
    address: str | None = None,
    resume: bool = False,
    host: Any = PackHost,
) -> int:
    """Run a sweep, or go on with one.

    Args:
        storage: of the sweep's folder, which is made when Ray is there; of one that goes on, all but adapters and
            checkpoints has been pulled.
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, else one of this machine's own.
        resume: the folder holds the sweep already.
        host: the class of the actors that run the packs.

    Returns:
        The exit code, which also stands in the folder's exit_code.

    Raises:
        InputError: the cluster cannot be reached, or has no room for a pack, or the folder cannot be written; nothing
            was.
    """
    spec = prepared.pinned(spec)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder, began, git = storage.folder, now(), git_state()
    lines = missing(spec.trackers)
    if resume:
        lines += changed(prepared, folder, storage.out)
    if lines:
        raise InputError(lines)

    heartbeat = Heartbeat(console, "starting Ray")
    say = heartbeat.say
    with Interrupt() as interrupt, heartbeat, contextlib.ExitStack() as stack:
        hold = alone(storage, say, lambda: interrupt.asked)
        if resume:
            with _writable(storage):
                lost = stack.enter_context(hold)
                mend(folder / JOURNAL, say, lambda: interrupt.asked)
        say("starting Ray …")
        with connect(address) as session:
            interrupt.arm()
            own = session is not None
            nodes, more = ray.nodes(), Growth() if own else growth()
            resources = worker_resources(spec, nodes, more)
            if own and resources.get("GPU"):
                gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
                stack.enter_context(hold_gpus(gpus, storage.out, say))
            with _writable(storage):
                if not resume:
                    lost = stack.enter_context(hold)
                    _keep_data(prepared, storage, say)
                    write_text(folder / SPEC, dump_spec(spec))
                    storage.push(SPEC)
                storage.delete(EXIT_CODE)
                token = storage.place_token()
            log_to(folder / "logs" / "driver.log")
            search = _Search(
                spec,
                prepared,
                storage,
                token,
                resources,
                pack_limits(spec, nodes, more, resources),
                spec.resources.patience or (timeouts.PACK_START_LOCAL_S if own else timeouts.PACK_START_CLUSTER_S),
                host,
                elsewhere=not own,
            )
            recorder = search.run(console, heartbeat, interrupt, lost)
            run = Run(
                began=began.isoformat(timespec="seconds"),
                seconds=round((now() - began).total_seconds(), 1),
                worker_seconds=round(search.pack_seconds * spec.resources.workers_per_pack, 1),
                worker=resources,
                machines=machines(ray.nodes()),
                git=git,
                search_ended=search.ended_early,
            )
        if session is not None:
            keep_logs(session / "logs", folder / "logs" / "ray")
        if why := lost():
            console.print(why, style="red", markup=False, highlight=False)
            return INTERRUPTED
        if recorder.ending is not None and recorder.ending[1] != INTERRUPTED_REASON:
            console.print(recorder.ending[1], style="red", markup=False, highlight=False)
        interrupted = recorder.ending is not None and recorder.ending[0] == "interrupted"
        code = exit_code(recorder.counts, interrupted)
        heartbeat.doing = lambda: "making the report"
        _finish(storage, run, code, console)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(recorder.counts.items()))
    say(f"{storage.out}: {ended or 'no trial began'}")
    if interrupted:
        say("go on with it: the same command with --resume")
    return code


def _keep_data(prepared: Prepared, storage: Storage, say: Callable[[str], object]) -> None:
    """Keep the data files with the spec. Raises OSError, InputError."""
    kept = keep(prepared.dataset.summary.files, storage.folder)
    if kept:
        storage.push(f"{DATA}/{KEPT}", DATA)
    for file in kept:
        if file.kept is None:
            size, most = f"{file.bytes / 1e6:,.0f} MB", f"{MOST_BYTES / 2**20:.0f} MB"
            say(
                f"data: {file.name} ({size}, SHA-256 {file.sha256[:16]}…) is not copied to {storage.out}/{DATA}, which "
                f"takes {most}: to go on, to export and to repeat it has to be there as it is"
            )


@contextlib.contextmanager
def _writable(storage: Storage) -> Iterator[None]:
    """What cannot be written before the sweep begins, is the user's to put right."""
    try:
        yield
    except OSError as error:
        raise InputError([f"{storage.out}: cannot be written: {error.strerror or error}"]) from None


def exit_code(counts: Counter[Status], interrupted: bool) -> int:
    """What a sweep whose trials ended so returns."""
    if interrupted:
        return INTERRUPTED
    if not counts["completed"] + counts["pruned"]:
        return NO_RESULT
    return SOME_FAILED if counts["failed"] + counts["interrupted"] else DONE


def _finish(storage: Storage, run: Run, code: int, console: Console) -> None:
    """Make the report and leave the exit code; that one cannot be written costs no trial."""
    with contextlib.suppress(OSError):
        note(storage.folder, run)
    with contextlib.suppress(
        OSError
    ):  # a pack has written it, which may have been elsewhere; the trials' files are here
        storage.pull(BASE)
    try:
        path = write_report([storage.folder])
        outcome(console, json.loads((path.parent / SUMMARY).read_text()))
        console.print(f"report: {path}", markup=False, highlight=False)
    except Exception as error:  # whatever is wrong with it: the trials' records stand
        logging.getLogger("ray").exception("no report")
        why = f"{one_line(error)}; try again: bitlora report {storage.out}"
        console.print(f"no report: {why}", markup=False, highlight=False)
    try:
        write_text(storage.folder / EXIT_CODE, f"{code}\n")
        kept = ("report", "logs/driver.log", "logs/ray", RUNS, EXIT_CODE)
        storage.push(*(name for name in kept if (storage.folder / name).exists()))
        storage.flush()
    except OSError as error:
        console.print(f"{storage.out}: not all could be written: {error}", markup=False, highlight=False)


class _Search:
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
        self._at_once = slots * limits[1] + AHEAD
        self._past = look(storage.folder)
        self._budget = prepared.trial(spec, {}).steps
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
            rungs=make_rungs(spec.scheduler, self._budget, len(prepared.dataset.eval), self._past.curves),
            checkpoint_every=spec.train.checkpoint_every,
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
        self.ended_early = ""
        """Why it asked for fewer trials than the spec has; known when it has ended."""

    def run(self, console: Console, heartbeat: Heartbeat, interrupt: Interrupt, lost: Callable[[], str]) -> Recorder:
        """Search, and end everything, however the search ends. Gives the recorder, which knows how the trials ended.

        Args:
            lost: says why the folder is this run's no longer; nothing while it is.
        """
        spec, storage, pool = self._spec, self._storage, self._pool
        searcher = OptunaSearcher(
            spec,
            storage.folder / JOURNAL,
            configure=lambda chosen: self._prepared.trial(spec, chosen).model_dump(),
            changed=lambda: storage.push_soon(JOURNAL),
            essence=self._prepared.essence,
            bounds=Bounds(spec, self._prepared.base),
            earlier=self._prepared.earlier,
        )
        searcher.set_attributes(began_with(self._prepared))
        past = self._past
        searcher.reported = {trial_id: lines[-1].step for trial_id, lines in past.metrics.items() if lines}
        recorder = Recorder(storage, pool, self._prepared, searcher, stopped_by=spec.scheduler.name)
        recorder.resume(past)
        searcher.trained(past.tokens)
        left = searcher.left
        if left:
            pool.start.remote()
        sizes = cache(lambda trial_id: self._prepared.bytes(searcher.config(trial_id)))
        scheduler = make_scheduler(spec, self._budget, past.curves, sizes)
        with (
            Display(
                console, heartbeat, pool, list(spec.search.space), searcher.total, past.best, searcher.total - left
            ) as display,
            trials_from(PoolFeed(pool, scheduler.heard)) as trainable,
        ):
            recorder.tell = display.end_twin
            searcher.ended_early = lambda why: display.search_ends(why, searcher.total)
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=left,
                    max_concurrent_trials=self._at_once,
                    reuse_actors=False,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=f"tune-{uuid.uuid4().hex[:6]}",
                    storage_path=str(storage.folder / "logs"),
                    stop=SweepStopper(pool, interrupt, lost, recorder),
                    callbacks=[recorder, display, *callbacks(spec.trackers, spec.name), NoStatistics()],
                    failure_config=tune.FailureConfig(max_failures=0),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            try:
                if left:
                    tuner.fit()
            except KeyboardInterrupt:
                recorder.ending = ("interrupted", INTERRUPTED_REASON)
            except Exception as error:  # a full disk, a bug of Tune's: what has been recorded stands, and is told
                logging.getLogger("ray").exception("the search ended")
                recorder.ending = recorder.ending or ("interrupted", f"the search ended: {one_line(error)}")
            finally:
                self._end(recorder, searcher)
        if searcher.refused:
            heartbeat.say(f"search.where: {searcher.refused} suggestions did not fit, and were not trained")
        self.ended_early = searcher.why_ended
        return recorder

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
