"""What a pack has to do with the rest of the world, on threads of its own: no step waits for any of it.

Only the pack's first worker has a link to anybody; the others have a `Link`, which is silent.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import ray

from bitlora import record
from bitlora.config import TrialConfig
from sweeps.packs import Command, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from bitlora.checkpoint import Progress
    from bitlora.engine import EvalResult
    from bitlora.slot import SlotState
    from sweeps.worker import Settings

BACKLOG: Final = 8
"""Evaluations that may wait to be written; with more, training waits for the storage rather than fill the memory."""

Latent = dict[str, tuple["Tensor", ...]]
Found = tuple["SlotState", "Progress"]


class Link:
    """The link of a worker that speaks to nobody."""

    def take(self, wait: float) -> list[Command]:
        """What the pool wants done, as soon as there is something; nothing after so many seconds."""
        return []

    def begin(self, trial_id: str, config: TrialConfig, reported: int) -> Found | None:
        """A trial begins, or goes on: what it goes on from."""
        return None

    def evaluated(
        self,
        trial_id: str,
        config: TrialConfig,
        metrics: record.Metrics,
        result: EvalResult,
        latent: Latent,
        test: EvalResult | None,
    ) -> None:
        """Write what an evaluation came to, and report it. `test`: on the test split, at the end of a confirming trial."""

    def save(self, trial_id: str, config: TrialConfig, state: SlotState, progress: Progress) -> None:
        """Write a checkpoint."""

    def diverged(self, trial_id: str, step: int, reason: str) -> None:
        """Report that a trial has diverged."""

    def let_go(self, trial_id: str) -> None:
        """Say that a trial's slot is empty, when all its files are written."""

    def progress(self, steps: dict[str, tuple[int, float]]) -> None:
        """(step, train loss) of the pack's trials."""

    def say(self, event: str, *trials: str) -> None:
        """Add a line to the pack's log."""

    def close(self) -> None:
        """Returns when all is written."""


class FirstLink(Link):
    """The first worker's link to the pool and to the sweep's folder.

    Args:
        name: the pack's.
        base: what tells this base and its targets from others, in checkpoints.
        dtype: what the base computes in, by torch's name.
    """

    def __init__(self, name: str, pool: Any, settings: Settings, base: str, dtype: str) -> None:
        self._name = name
        self._pool = pool
        self._settings = settings
        self._storage = settings.storage
        self._base = base
        self._dtype = dtype
        self._inbox: queue.Queue[Command] = queue.Queue()
        self._failed = False
        """Something could not be written: nothing that depends on it may be."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="saver")
        """Checkpoints are large, and nobody waits for them: they have a thread of their own."""
        self._backlog = threading.Semaphore(BACKLOG)
        self._newest: dict[str, int] = {}
        """Step of the newest checkpoint of each trial that waits to be written: only that one is."""
        self._log_name = f"logs/{name}.jsonl"
        log = self._storage.folder / self._log_name
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8", buffering=1)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def _listen(self) -> None:
        """Fetch what the pool wants."""
        while True:
            try:
                commands = ray.get(self._pool.commands.remote(self._name))
            except Exception:  # the pool is gone, and with it whoever wants this pack
                commands = [("stop", None)]
            for command in commands:
                if command[0] == "attach" and command[1][3]:  # it was in a pack before: its files are wherever that was
                    folder = f"trials/{command[1][0]}"
                    with contextlib.suppress(OSError):  # without them it begins again
                        self._storage.pull(f"{folder}/{record.CHECKPOINT}", f"{folder}/{record.METRICS}")
                self._inbox.put(command)
                if command[0] in ("stop", "leave"):
                    return

    def take(self, wait: float) -> list[Command]:
        taken: list[Command] = []
        with contextlib.suppress(queue.Empty):
            if wait > 0:
                taken.append(self._inbox.get(timeout=wait))
            while True:
                taken.append(self._inbox.get_nowait())
        return taken

    def begin(self, trial_id: str, config: TrialConfig, reported: int) -> Found | None:
        from bitlora.checkpoint import load_checkpoint

        folder, where = self._storage.folder / "trials" / trial_id, f"trials/{trial_id}"
        found = None
        try:
            found = load_checkpoint(folder, config, self._base)
        except ValueError as error:  # it begins again, and comes to the same numbers
            self.say(f"no checkpoint: {error}", trial_id)

        # A checkpoint is written when all evaluations before it are. What was written of them but not heard of is said
        # again; what was written at its step or after it comes once more.
        before = found[1].step - 1 if found is not None else 0

        def write() -> None:
            record.write_json(folder / record.CONFIG, config.model_dump(mode="json"))
            record.keep_metrics(folder, max(reported, before))
            self._storage.push(f"{where}/{record.CONFIG}", f"{where}/{record.METRICS}")
            for line in record.read_metrics(folder):
                if line.step > reported:
                    self._report(trial_id, "running", line)

        self._write(write)
        self.say("attach", trial_id)
        return found

    def evaluated(
        self,
        trial_id: str,
        config: TrialConfig,
        metrics: record.Metrics,
        result: EvalResult,
        latent: Latent,
        test: EvalResult | None,
    ) -> None:
        folder, where = self._storage.folder / "trials" / trial_id, f"trials/{trial_id}"
        scores = [(record.EVAL, self._settings.dataset.eval, result)]
        if test is not None:
            scores.append((record.TEST, self._settings.dataset.test, test))
        done = metrics.step == config.steps

        def write() -> None:
            from bitlora.checkpoint import save_adapter

            if not ray.get(self._pool.evaluated.remote(self._name, trial_id)):
                return
            for name, rows, scored in scores:
                counts = scored.tokens, rows.text_bytes.tolist()
                record.write_scores(folder / name, rows.example_ids, scored.losses, *counts, self._dtype)
            model = self._settings.base.model
            record.write_folder(folder / record.ADAPTER, lambda part: save_adapter(part, latent, config, model))
            record.append_metrics(folder, metrics)
            files = [name for name, _, _ in scores]
            self._storage.push(*(f"{where}/{name}" for name in (*files, record.ADAPTER, record.METRICS)))
            self._report(trial_id, "completed" if done else "running", metrics)

        self._backlog.acquire()
        self._write(write, self._backlog.release)
        self.say("evaluated", trial_id)

    def save(self, trial_id: str, config: TrialConfig, state: SlotState, progress: Progress) -> None:
        def hand_over() -> None:
            self._newest[trial_id] = state.step
            self._saver.submit(self._guarded, write)

        def write() -> None:
            from bitlora.checkpoint import save_checkpoint

            if self._newest.get(trial_id) != state.step:  # a newer one waits behind it, or the trial has gone
                return
            save_checkpoint(self._storage.folder / "trials" / trial_id, state, progress, config, self._base)
            self._storage.push(f"trials/{trial_id}/{record.CHECKPOINT}")

        # Through the writer: never before the evaluations that come before it.
        self._write(hand_over)

    def diverged(self, trial_id: str, step: int, reason: str) -> None:
        result = {"trial_id": trial_id, "status": "diverged", "reason": reason, "step": step, "eval_loss": math.nan}
        self._write(lambda: self._pool.report.remote(self._name, result))

    def let_go(self, trial_id: str) -> None:
        def hand_over() -> None:
            self._newest.pop(trial_id, None)
            self._saver.submit(lambda: self._pool.let_go.remote(self._name, trial_id))

        self._write(hand_over)
        self.say("detach", trial_id)

    def progress(self, steps: dict[str, tuple[int, float]]) -> None:
        self._pool.progress.remote(self._name, steps)

    def say(self, event: str, *trials: str) -> None:
        line = {"time": time.time(), "event": event, "trials": list(trials)}
        self._log.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._writer.shutdown()
        self._saver.shutdown()
        self._log.close()
        with contextlib.suppress(OSError):
            self._storage.push(self._log_name)

    def _report(self, trial_id: str, status: str, metrics: record.Metrics) -> None:
        self._pool.report.remote(self._name, {**asdict(metrics), "trial_id": trial_id, "status": status, "reason": ""})

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
        except Exception as error:
            self._failed = True
            self._pool.pack_failed.remote(self._name, f"could not write: {one_line(error)}", unwritable=True)
            self._inbox.put(("stop", None))
            raise
