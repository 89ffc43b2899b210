"""A pack: one Ray Train run that holds the base and trains many trials' adapters over it.

`PackHost` is the actor that starts it; `pack_loop` is what its worker runs. The worker never waits for another process
between steps: a thread fetches what the pool wants, another writes files and reports.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray

from bitlora import record
from bitlora.config import BaseConfig, Dtype, TrialConfig
from sweeps.pool import HEAD, POOL, Command, one_line

if TYPE_CHECKING:
    from bitlora.base import Base
    from bitlora.data import Dataset
    from bitlora.engine import Engine, StepStats

DIVERGED: Final = 1.1
"""A trial has diverged when its eval loss is this many times that of its own first step, …"""
UNIFORM: Final = 0.99
"""… and at least this share of what uniform guessing over the vocabulary gives: a collapsed model lands just there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a pack needs; the pool hands it to the worker."""

    base: BaseConfig
    dtype: Dtype
    checkpointing: bool
    dataset: Dataset
    slots: int
    folder: str
    """The sweep's folder."""
    resources: dict[str, float]
    """Of one worker."""


@ray.remote(num_cpus=0, max_restarts=0, resources=HEAD)
class PackHost:
    """Calls `fit()`, which returns when the pack has ended, in a process of its own so that it can be killed."""

    def run(self, name: str) -> None:
        """Run the pack.

        Raises:
            RuntimeError: it did not come up, or was lost; the message is one line.
        """
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from sweeps.trainer import PackTrainer

        settings: Settings = ray.get(ray.get_actor(POOL).settings.remote())
        trainer = PackTrainer(
            pack_loop,
            train_loop_config={"pack": name},
            scaling_config=ScalingConfig(
                num_workers=1, use_gpu=settings.resources.get("GPU", 0) > 0, resources_per_worker=settings.resources
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(Path(settings.folder) / "logs" / "train"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # Train raises several kinds; all a trial needs to know is that its pack is gone
            raise RuntimeError("a worker of the pack died") from error


def pack_loop(config: dict[str, Any]) -> None:
    """What a pack's worker runs: load the base, say so, train what the pool sends until it says stop."""
    import torch

    from bitlora.base import load_base, resolve_dtype
    from bitlora.engine import Engine

    name, pool = config["pack"], ray.get_actor(POOL)
    ray.get(pool.pack_begun.remote(name, ray.util.get_current_placement_group().id.hex()))
    settings: Settings = ray.get(pool.settings.remote())
    try:
        device = torch.device("cuda" if torch.cuda.is_available() and settings.resources.get("GPU") else "cpu")
        base = load_base(settings.base, resolve_dtype(settings.dtype, device), device, settings.checkpointing)
    except Exception as error:  # the pool passes it on as the reason of the trials that waited for this pack
        ray.get(pool.pack_failed.remote(name, f"the base could not be loaded: {one_line(error)}"))
        raise
    pack = Pack(name, pool, settings, base, Engine(base, settings.slots))
    ray.get(pool.pack_ready.remote(name))
    try:
        pack.run()
    except Exception as error:
        ray.get(pool.pack_failed.remote(name, one_line(error)))
        raise


@dataclass(slots=True)
class Running:
    """A trial in its slot."""

    trial_id: str
    config: TrialConfig
    slot: int
    began: float
    reported: int
    """The last step that was reported before its pack was lost; 0 for a trial that is new."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    first_loss: float | None = None

    @property
    def folder(self) -> str:
        return f"trials/{self.trial_id}"


class Pack:
    """The worker's side of a pack: trials by slot, between two steps obeying the pool."""

    def __init__(self, name: str, pool: Any, settings: Settings, base: Base, engine: Engine) -> None:
        from bitlora.engine import Batch

        self._name = name
        self._pool = pool
        self._settings = settings
        self._base = base
        self._engine = engine
        self._folder = Path(settings.folder)
        self._train = settings.dataset.train
        self._eval = Batch.of(settings.dataset.eval, base.device)
        self._trials: dict[str, Running] = {}
        self._ahead: dict[str, tuple[str, dict[str, Any], int]] = {}
        """Trials that wait here for a slot, so that the next step after one is free is already theirs."""
        self._inbox: queue.Queue[Command] = queue.Queue()
        self._stopped = False
        self._failed = False
        """Something could not be written: nothing that depends on it may be."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._log = (self._folder / "logs" / f"{name}.jsonl").open("a", encoding="utf-8", buffering=1)

    def run(self) -> None:
        """Train until the pool says stop, or is gone."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        try:
            while self._obey(wait=True):
                self._step()
        finally:
            self._writer.shutdown()
            self._log.close()

    def _listen(self) -> None:
        """Fetch what the pool wants, on a thread of its own."""
        while True:
            try:
                commands = ray.get(self._pool.commands.remote(self._name))
            except Exception:  # the pool is gone, and with it whoever wants this pack
                commands = [("stop", None)]
            for command in commands:
                self._inbox.put(command)
                if command[0] == "stop":
                    return

    def _obey(self, wait: bool) -> bool:
        """Do what has arrived, and fill the free slots. With `wait` and without a trial, wait for something.

        Returns:
            False: stop.
        """
        while not self._stopped and (not self._inbox.empty() or (wait and not self._trials and not self._ahead)):
            what, about = self._inbox.get()
            if what == "stop":
                self._stopped = True
                break
            if what == "attach":
                self._ahead[about[0]] = about
            elif about in self._trials:
                self._detach(about)
            elif self._ahead.pop(about, None):
                self._write(lambda trial_id=about: self._pool.let_go.remote(self._name, trial_id))
        while self._ahead and self._engine.free and not self._stopped:
            self._attach(*self._ahead.pop(next(iter(self._ahead))))
        return not self._stopped

    def _attach(self, trial_id: str, config: dict[str, Any], reported: int) -> None:
        trial = TrialConfig(**config)
        running = Running(trial_id, trial, self._engine.attach(trial), time.monotonic(), reported)
        self._trials[trial_id] = running
        folder = self._folder / running.folder

        def begin() -> None:
            record.write_json(folder / record.CONFIG, config)
            # A trial that lost its pack begins again, and keeps what it has reported.
            record.keep_metrics(folder, reported)

        self._write(begin)
        self._say("attach", trial_id)

    def _detach(self, trial_id: str) -> None:
        self._engine.detach(self._trials.pop(trial_id).slot)
        self._write(lambda: self._pool.let_go.remote(self._name, trial_id))
        self._say("detach", trial_id)

    def _step(self) -> None:
        """One optimizer step of every trial, then the evaluations that are due."""
        from bitlora.data import batch_rows
        from bitlora.engine import Batch

        batches = {}
        for trial in self._trials.values():
            step = self._engine.slots[trial.slot].step
            rows = batch_rows(len(self._train), trial.config.batch_size, trial.config.seed, step)
            batches[trial.slot] = Batch.of(self._train.take(rows), self._base.device)
        self._say("step", *self._trials)
        stats = self._engine.step(batches)
        for trial in list(self._trials.values()):
            self._after_step(trial, stats[trial.slot])
        progress = {
            t.trial_id: (self._engine.slots[t.slot].step, t.losses[-1]) for t in self._trials.values() if t.losses
        }
        self._pool.progress.remote(self._name, progress)
        # One slot after the other: while the next is evaluated, what becomes of the one before is decided elsewhere.
        # Those that end by themselves come last: nobody else decides about them, and the next step is that of a successor.
        due = [(t, step) for t in self._trials.values() if self._due(t, step := self._engine.slots[t.slot].step)]
        for trial, step in sorted(due, key=lambda pair: pair[1] == pair[0].config.steps):
            if trial.trial_id in self._trials:
                self._evaluate(trial, step)
                if not self._obey(wait=False):
                    return

    @staticmethod
    def _due(trial: Running, step: int) -> bool:
        return step % trial.config.eval_every == 0 or step == trial.config.steps

    def _after_step(self, trial: Running, stats: StepStats) -> None:
        trial.tokens += stats.tokens
        trial.losses.append(stats.loss)
        if trial.first_loss is None:
            trial.first_loss = stats.loss
        if not stats.finite:
            what = "loss" if not math.isfinite(stats.loss) else "gradient"
            self._diverged(trial, f"the {what} was not finite at step {self._engine.slots[trial.slot].step}")

    def _evaluate(self, trial: Running, step: int) -> None:
        """Score a trial, write what it came to, and report it."""
        if step <= trial.reported:
            trial.losses.clear()
            return
        result = self._engine.evaluate([trial.slot], self._eval)[trial.slot]
        uniform = math.log(self._base.model.config.get_text_config().vocab_size)
        worst = max(UNIFORM * uniform, DIVERGED * (trial.first_loss or 0.0))
        if not math.isfinite(result.loss) or result.loss > worst:
            found = f"{result.loss:.4g}" if math.isfinite(result.loss) else "not finite"
            self._diverged(
                trial,
                f"the eval loss at step {step} was {found}, no better than guessing (uniform: {uniform:.4g} nats)",
            )
            return
        from bitlora.optim import learning_rate

        metrics = record.Metrics(
            step=step,
            tokens=trial.tokens,
            train_loss=math.fsum(trial.losses) / len(trial.losses),
            eval_loss=result.loss,
            learning_rate=learning_rate(trial.config, step),
            seconds=time.monotonic() - trial.began,
        )
        trial.losses.clear()
        latent = self._engine.latent(trial.slot)
        ids = self._settings.dataset.eval.example_ids
        folder = self._folder / trial.folder
        done = step == trial.config.steps

        def write() -> None:
            from bitlora.checkpoint import save_adapter

            if not ray.get(self._pool.evaluated.remote(self._name, trial.trial_id)):
                return
            record.write_eval(folder, ids, result.losses, result.tokens)
            model = self._settings.base.model
            record.write_folder(folder / record.ADAPTER, lambda part: save_adapter(part, latent, trial.config, model))
            record.append_metrics(folder, metrics)
            self._report(trial, "completed" if done else "running", step, metrics.eval_loss)

        self._write(write)
        self._say("evaluated", trial.trial_id)
        if done:
            self._detach(trial.trial_id)

    def _diverged(self, trial: Running, reason: str) -> None:
        step = self._engine.slots[trial.slot].step
        self._write(lambda: self._report(trial, "diverged", step, math.nan, reason))
        self._detach(trial.trial_id)

    def _report(self, trial: Running, status: str, step: int, eval_loss: float, reason: str = "") -> None:
        result = {"trial_id": trial.trial_id, "status": status, "reason": reason, "step": step, "eval_loss": eval_loss}
        self._pool.report.remote(self._name, result)

    def _write(self, job: Any) -> None:
        """Do `job` after all that was to be written before it, off the step's path."""

        def guarded() -> None:
            try:
                if not self._failed:
                    job()
            except Exception as error:
                self._failed = True
                self._pool.pack_failed.remote(self._name, f"could not write: {one_line(error)}")
                self._inbox.put(("stop", None))
                raise

        self._writer.submit(guarded)

    def _say(self, event: str, *trials: str) -> None:
        line = {"time": time.time(), "event": event, "trials": list(trials)}
        self._log.write(json.dumps(line) + "\n")
