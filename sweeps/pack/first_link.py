"""The link of a pack's first worker, on threads of its own: no step waits for any of it."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

import ray

from bitlora import timeouts
from bitlora.config.explain import one_line
from bitlora.config.trial import TrialConfig
from bitlora.files import record, writing
from bitlora.files.baseline import BASE
from sweeps.pack.bare import BareScores
from sweeps.pack.link import Link
from sweeps.pack.measuring.measuring import Scored, write_scored
from sweeps.pool.messages import Attach, Command, Detach, Leave, StepProgress, Stop, TrialResult
from sweeps.search.cloning.place import Source
from sweeps.search.rules import Wave
from sweeps.search.rungs.sequential import loss_of

if TYPE_CHECKING:
    from bitlora.adapter.latent import Latent
    from bitlora.engine.checkpoint import Checkpoint, TrialProgress
    from bitlora.engine.slots.slot import SlotState
    from bitlora.files.origin import Origin
    from bitlora.forward.host import Coming
    from sweeps.pack.settings import PackSettings

BACKLOG: Final = 8
"""Evaluations that may wait to be written; with more, training waits for the storage rather than fill the memory."""


class FirstLink(Link):
    """The first worker's link to the pool and to the sweep's folder.

    Args:
        name: the pack's.
        base: what tells this base and its targets from others, in checkpoints.
        origin: what its scores are computed by; kept with them.
    """

    def __init__(self, name: str, pool: Any, settings: PackSettings, base: str, origin: Origin) -> None:
        self._name = name
        self._pool = pool
        self._settings = settings
        self._storage = settings.storage
        self._base = base
        self._origin = origin
        self._inbox: queue.Queue[Command] = queue.Queue()
        self._failed = False
        """Something could not be written: nothing that depends on it may be."""
        self._closing = False
        """The pack ends, but for its last files."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="saver")
        """Checkpoints are large, and nobody waits for them: they have a thread of their own."""
        self._backlog = threading.Semaphore(BACKLOG)
        self._checkpoints: dict[str, tuple[Coming[SlotState], TrialProgress]] = {}
        """Of each trial the newest that waits to be written; an older one is dropped: slow storage fills no memory."""
        self._puller = ThreadPoolExecutor(1, thread_name_prefix="puller")
        """Files of trials that were in a pack before may be far away: no other command waits for them."""
        self._pulling: set[str] = set()
        """Trials whose files are on their way here, and that are still wanted."""
        self._lock = threading.Lock()
        self._log_name = f"logs/{name}.jsonl"
        log = self._storage.folder / self._log_name
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8", buffering=1)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def _listen(self) -> None:
        """Fetch what the pool wants."""
        received = 0
        while True:
            try:
                commands = self._call(self._pool.commands, received)
            except Exception as error:  # deaf, a pack would hold its trials for ever
                self.log_event(f"no commands: {one_line(error)}")
                commands = None
            if commands is None:  # the pool is gone, and with it whoever wants this pack
                commands = [Stop()]
            received += len(commands)
            for command in commands:
                if isinstance(command, Attach) and command.needs_files:
                    with self._lock:
                        self._pulling.add(command.trial_id)
                    self._puller.submit(self._pull, command)
                elif not (isinstance(command, Detach) and self._no_longer_wanted(command.trial_id)):
                    self._inbox.put(command)
                if isinstance(command, Stop | Leave):
                    return

    def _pull(self, command: Attach) -> None:
        """Fetch what a trial goes on from, wherever its pack was, and only then let it in."""
        folder = f"trials/{command.trial_id}"
        try:
            if command.resumes:
                self._storage.pull(f"{folder}/{record.CHECKPOINT}", f"{folder}/{record.METRICS}")
            if command.source is not None:
                self._storage.pull(_checkpoint_of(command.source))
            if start := command.config.get("warm_start"):
                self._storage.pull(f"{record.STARTS}/{start}")
        except Exception as error:  # whatever it is: without them it begins again, and outside it would wait for ever
            self.log_event(f"no files of before: {one_line(error)}", command.trial_id)
        with self._lock:
            if command.trial_id in self._pulling:
                self._pulling.discard(command.trial_id)
                self._inbox.put(command)

    def _no_longer_wanted(self, trial_id: str) -> bool:
        """Is the trial stopped before it came in? Then its slot is empty already."""
        with self._lock:
            if trial_id not in self._pulling:
                return False
            self._pulling.discard(trial_id)
        self._saver.submit(self._call, self._pool.slot_released, trial_id)
        return True

    def _call(self, method: Any, *arguments: Any) -> Any:
        """Call the pool until it has answered; None: it is gone. Not for the step's thread.

        Every such call may arrive more than once: the pool takes each word of a trial's end, and of its slot, as the first.

        Raises:
            ray.exceptions.RayError: the pool could not carry it out. What hangs on it must not go on.
        """
        while True:
            try:
                return ray.get(method.remote(self._name, *arguments))
            except ray.exceptions.ActorUnavailableError:  # a network's hiccup, a pool that is restarting
                time.sleep(timeouts.REPORT_RETRY_S)
            except ray.exceptions.RayActorError:
                return None

    def poll(self, wait: float) -> list[Command]:
        taken: list[Command] = []
        with contextlib.suppress(queue.Empty):
            if wait > 0:
                taken.append(self._inbox.get(timeout=wait))
            while True:
                taken.append(self._inbox.get_nowait())
        return taken

    def wants_base(self) -> bool:
        try:
            asked = (record.RECORD, *([record.TEST] if len(self._settings.dataset.test) else []))
            known = all(self._storage.exists(f"{BASE}/{name}") for name in asked)
            return not known and bool(self._call(self._pool.scores_base))
        except Exception as error:  # no trial needs it
            self.log_event(f"the base is not scored: {one_line(error)}")
            return False

    def base_scored(self, scores: BareScores) -> None:
        self._write(lambda: scores.write(self._settings, self._origin))
        self.log_event(f"the base without an adapter: eval loss {scores.eval.loss:.4f}")

    def restore(self, trial_id: str, config: TrialConfig, reported: int) -> Checkpoint | None:
        from bitlora.engine.checkpoint import load_checkpoint

        folder, where = self._storage.folder / "trials" / trial_id, f"trials/{trial_id}"
        restored = None
        try:
            restored = load_checkpoint(folder, config, self._base)
        except ValueError as error:  # it begins again, and comes to the same numbers
            self.log_event(f"no checkpoint: {error}", trial_id)

        # A checkpoint is written when all evaluations before it are. What was written of them but not heard of is said
        # again; what was written at its step or after it comes once more.
        before = restored.progress.step - 1 if restored is not None else -1

        def write() -> None:
            writing.write_json(folder / record.CONFIG, config.model_dump(mode="json"))
            record.keep_metrics(folder, max(reported, before))
            self._storage.push(f"{where}/{record.CONFIG}", f"{where}/{record.METRICS}")
            for line in record.read_metrics(folder):
                if line.step > reported:
                    wave = {} if line.row_losses is None else {trial_id: (line.step, loss_of(line))}
                    self._report(trial_id, "running", line, wave)

        self._write(write)
        self.log_event("attach", trial_id)
        return restored

    def losses(self, trial_id: str, until: int) -> list[float]:
        lines = record.read_metrics(self._storage.folder / "trials" / trial_id)
        return [line.eval_loss for line in lines if line.step <= until]

    def latent_of(self, config: TrialConfig) -> dict[str, Latent]:
        from bitlora.adapter.peft_folder import load_latent

        return load_latent(self._storage.folder / record.STARTS / str(config.warm_start), config)

    def extended(self, trial_id: str, config: TrialConfig) -> None:
        where = f"trials/{trial_id}/{record.CONFIG}"

        def write() -> None:
            writing.write_json(self._storage.folder / where, config.model_dump(mode="json"))
            self._storage.push(where)
            self._call(self._pool.extended, trial_id)

        self._write(write)

    def copy_of(self, source: Source, trial_id: str) -> Checkpoint | None:
        from bitlora.engine.checkpoint import load_checkpoint

        path = self._storage.folder / _checkpoint_of(source)
        try:
            found = load_checkpoint(path.parent, None, self._base, path.name)
        except ValueError as error:
            self.log_event(f"no copy: {error}", trial_id)
            return None
        if found is None:
            self.log_event(f"no copy: there is no {path.name} of {source.trial_id}", trial_id)
        return found

    def evaluated(
        self,
        trial_id: str,
        config: TrialConfig,
        metrics: record.Metrics,
        scored: Scored,
        latent: Coming[dict[str, Latent]] | None,
        test: Scored | None,
        wave: Wave,
        left: Checkpoint | None = None,
        over: str = "",
    ) -> None:
        folder, where = self._storage.folder / "trials" / trial_id, f"trials/{trial_id}"
        status: Final = "completed" if over or metrics.step == config.steps else "running"

        def write() -> None:
            from bitlora.adapter.peft_folder import save_adapter

            if not self._call(self._pool.evaluated, trial_id):
                return
            files: list[str] = []
            if latent is not None:
                weights, model, step = latent.arrived(), self._settings.base.model, metrics.step
                written = write_scored(folder, self._settings.dataset, scored, test, self._origin, config.confirm_rows)
                place = folder / record.ADAPTER
                writing.write_folder(place, lambda part: save_adapter(part, weights, config, model, step))
                files = [*written, record.ADAPTER]
            if left is not None:
                self._save_rung(trial_id, left)
            record.append_metrics(folder, metrics)
            self._storage.push(*(f"{where}/{name}" for name in (*files, record.METRICS)))
            self._report(trial_id, status, metrics, wave, left is not None, over)

        self._backlog.acquire()
        self._write(write, self._backlog.release)
        self.log_event("evaluated", trial_id)

    def _save_rung(self, trial_id: str, left: Checkpoint) -> None:
        """Write the checkpoint of where a trial left its slot. The one before it stays, since whoever went on from there
        may not have got any further; those before are removed, since all have."""
        from bitlora.engine.checkpoint import save_checkpoint

        folder, name = self._storage.folder / "trials" / trial_id, record.rung(left.progress.step)
        with self._lock:  # what else was to be written of it is older
            self._checkpoints.pop(trial_id, None)
        save_checkpoint(folder, left.state, left.progress, left.config, self._base, name)
        self._storage.push(f"trials/{trial_id}/{name}")
        for old in sorted(path.name for path in folder.glob(record.RUNGS) if path.name <= name)[:-2]:
            self._storage.delete(f"trials/{trial_id}/{old}")

    def save(self, trial_id: str, config: TrialConfig, state: Coming[SlotState], progress: TrialProgress) -> None:
        step = progress.step

        def submit() -> None:
            self._saver.submit(self._guarded, write)

        def write() -> None:
            from bitlora.engine.checkpoint import save_checkpoint

            with self._lock:
                newest = self._checkpoints.get(trial_id)
                if newest is None or newest[1].step != step:  # a newer one comes behind it, or the trial has gone
                    return
                del self._checkpoints[trial_id]
            folder = self._storage.folder / "trials" / trial_id
            coming, reached = newest
            save_checkpoint(folder, coming.arrived(), reached, config, self._base)
            self._storage.push(f"trials/{trial_id}/{record.CHECKPOINT}")

        with self._lock:
            self._checkpoints[trial_id] = state, progress
        # Through the writer: never before the evaluations that come before it.
        self._write(submit)

    def ended(self, trial_id: str, status: Literal["diverged", "failed"], step: int, reason: str) -> None:
        result = TrialResult(trial_id=trial_id, status=status, reason=reason, step=step, eval_loss=math.nan)
        self._write(lambda: self._call(self._pool.report, result))

    def strayed(self, trial_id: str, until: int, reason: str) -> None:
        result = TrialResult(
            trial_id=trial_id, status="running", step=until, eval_loss=math.nan, reason=reason, left=True
        )
        self._write(lambda: self._call(self._pool.report, result))

    def released(self, trial_id: str) -> None:
        def submit() -> None:
            with self._lock:
                self._checkpoints.pop(trial_id, None)
            self._saver.submit(let_go)

        def let_go() -> None:
            self._call(self._pool.slot_released, trial_id)
            for name in (
                record.ADAPTER,
                record.CHECKPOINT,
            ):  # they are away: a scratch disk holds no trial that has left
                self._storage.forget(f"trials/{trial_id}/{name}")

        self._write(submit)
        self.log_event("detach", trial_id)

    def progress(self, steps: dict[str, StepProgress]) -> None:
        self._pool.progress.remote(self._name, steps)

    def log_event(self, event: str, *trials: str) -> None:
        line = {"time": time.time(), "event": event, "trials": list(trials)}
        try:
            if not self._failed:
                self._log.write(json.dumps(line) + "\n")
        except OSError as error:  # as of any other file, and no trial's doing: the step goes on until the pack stops
            self._cannot_write(error)

    def close(self) -> None:
        self._closing = True
        self._puller.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown()
        self._saver.shutdown()
        with contextlib.suppress(OSError):
            self._log.close()
            self._storage.push(self._log_name)

    def _report(
        self,
        trial_id: str,
        status: Literal["running", "completed"],
        metrics: record.Metrics,
        wave: Wave,
        left: bool = False,
        reason: str = "",
    ) -> None:
        result = TrialResult(
            trial_id=trial_id,
            status=status,
            reason=reason,
            step=metrics.step,
            eval_loss=metrics.eval_loss,
            metrics=metrics,
            wave=wave,
            left=left,
        )
        if result.ended or left:
            self._call(self._pool.report, result)
        else:  # one that is lost is followed by another
            self._pool.report.remote(self._name, result)

    def _write(self, job: Callable[[], object], afterwards: Callable[[], object] = lambda: None) -> None:
        """Do `job` after all that was to be written before it, off the step's path."""

        def guarded() -> None:
            try:
                self._guarded(job)
            finally:
                afterwards()

        self._writer.submit(guarded)

    def _guarded(self, job: Callable[[], object]) -> None:
        try:
            if not self._failed:
                job()
                if self._closing:
                    self._pool.pack_wrote.remote(self._name)
        except Exception as error:
            self._cannot_write(error)
            raise

    def _cannot_write(self, error: Exception) -> None:
        self._failed = True
        self._pool.pack_failed.remote(self._name, f"could not write: {one_line(error)}", unwritable=True)
        self._inbox.put(Stop())


def _checkpoint_of(source: Source) -> str:
    """Where in the sweep's folder that is."""
    return f"trials/{source.trial_id}/{record.rung(source.step)}"
