"""What a person sees while a sweep runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bitlora import timeouts
from bitlora.files.record import STATUSES, in_order
from reports.document.cells import seconds
from reports.pages.summary import quantizer_lines
from sweeps.driver.meanwhile import Heartbeat
from sweeps.driver.underway.driver_only import DriverOnly
from sweeps.pool.messages import UNANSWERED, PackCounts, PoolStatus
from sweeps.search.metric import Objective
from sweeps.search.twins import Twin

SHOWN: Final = 6
"""Trials that have ended, at most, in the live display."""


def describe(config: dict[str, Any], axes: list[str]) -> str:
    """The values of the axes that a sweep varies, short."""
    shown = [f"{config[axis]:.2g}" if isinstance(config[axis], float) else str(config[axis]) for axis in axes]
    return " ".join(f"{axis} {value}" for axis, value in zip(axes, shown, strict=True))


class Pace:
    """How many steps a second, from the first that was seen on."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def at(self, steps: int) -> None:
        """So many were taken by now."""
        now = time.monotonic()
        if self._first is None and steps:
            self._first = (now, steps)
        self._last = (now, max(steps, self._last[1]))

    def seconds_for(self, steps: int) -> float | None:
        """How long so many take; None while that cannot be told."""
        if self._first is None:
            return None
        took, done = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return steps * took / done if done > 0 else None


def _span(low: int, high: int) -> str:
    return f"step {low}" if low == high else f"steps {low} to {high}"


class Display(DriverOnly, Callback):  # type: ignore[misc]
    """Listens to Tune, and asks the pool for the steps in between and for packs that wait.

    Args:
        heartbeat: says its lines, and meanwhile where the sweep stands.
        axes: what the sweep varies.
        total: trials of the sweep.
        best: (what is searched by, lower where it is better; trial) of an earlier run of the sweep.
        done: trials that ended in it.
        objective: what is searched by.
        keep_best: a trial comes to its best evaluation, not to its last.
    """

    def __init__(
        self,
        console: Console,
        heartbeat: Heartbeat,
        pool: Any,
        axes: list[str],
        total: int,
        best: tuple[float, str] | None = None,
        done: int = 0,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
        keep_best: bool = False,
    ) -> None:
        self._console = console
        self._heartbeat = heartbeat
        self._pool = pool
        self._axes = axes
        self._total = total
        self._best = best
        self._objective = objective
        self._keep_best = keep_best
        self._came_to: dict[str, float] = {}
        """Of trials that run, what they came to so far."""
        self._done = done
        self._ended: list[str] = []
        self._running: dict[str, dict[str, Any]] = {}
        self._bar = Progress(
            TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._bar.add_task("trials", total=total, completed=done)
        self._live: Live | None = None
        self._stop = threading.Event()
        self._status = PoolStatus((), {}, PackCounts())
        self._pace = Pace()
        self._steps = 0
        """Of trials that have ended here."""

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(self._draw(), console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        self._heartbeat.doing = self.where
        threading.Thread(target=self._watch, name="display", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heartbeat.doing = lambda: "ending what runs, and writing what is known"
        if self._live is not None:
            self._live.stop()

    def _watch(self) -> None:
        told = noted = 0
        while not self._stop.wait(timeouts.DISPLAY_REFRESH_S):
            try:
                self._status = ray.get(self._pool.status.remote(), timeout=timeouts.POOL_POLL_S)
            except ray.exceptions.RayError:
                continue
            if self._stop.is_set():
                return
            self._pace.at(self._taken())
            for note in self._status.notes[noted:]:
                self._console.print(note, style="yellow", markup=False, highlight=False)
            noted = len(self._status.notes)
            if self._live is not None:
                self._live.update(self._draw())
            elif (waiting := self._status.packs.waiting) != told:
                told = waiting
                self._print(f"packs that wait for a machine: {waiting}")

    def _print(self, text: str) -> None:
        if self._live is None:
            self._heartbeat.say(text, timed=True)

    def _taken(self) -> int:
        """Optimizer steps, of all trials."""
        return self._steps + sum(progress.step for progress in self._status.running.values() if progress is not None)

    def where(self) -> str:
        """Where the sweep stands, in a line: what packs do, how many trials are to come, and for how long yet."""
        running = {t: p for t, p in self._status.running.items() if t in self._running}
        steps = [progress.step for progress in running.values() if progress is not None]
        budgets = [config["steps"] for config in self._running.values()]
        packs, left = self._status.packs, self._total - self._done - len(self._ended)
        if steps:
            now = f"{len(steps)} training, at {_span(min(steps), max(steps))} of {max(budgets, default=0)}"
        elif packs.waiting and not packs.ready:
            now = f"packs that wait for a machine: {packs.waiting}"
        elif not packs.ready:
            now = "a pack starts: it loads the base"
        else:
            now = "a pack measures its memory and scores the base alone" if not running else "the first steps"
        to_come = f"{left} of {self._total} trials to end"
        # What stops early stops sooner; what has not begun has the budget of the others.
        most = left * max(budgets, default=0) - sum(steps)
        needed = self._pace.seconds_for(most)
        return f"{now}; {to_come}" + (f"; at this pace {seconds(needed)} at most" if needed is not None else "")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has begun: it waits for a slot now."""
        self._running[trial.config["trial_id"]] = trial.config["config"]

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial was evaluated."""
        trial_id, loss, step = trial.config["trial_id"], result["eval_loss"], result["step"]
        if not math.isfinite(loss):
            return
        steps, value = trial.config["config"]["steps"], self._objective.of(result)
        best = ""
        # The best is named among full trials of the search: at fewer steps, or on another seed, it is another number.
        searched = trial.config["config"].get("confirms") is None
        over = searched and (step == steps or result.get("status") == "completed")
        if value is not None:
            before = self._came_to.get(trial_id, value)
            value = self._came_to[trial_id] = min(value, before) if self._keep_best else value
        if over and value is not None and (self._best is None or value < self._best[0]):
            self._best, best = (value, trial_id), "  (best so far)"
            if value != self._objective.of(result):
                best = f"  (best so far, with {self._objective.turned(value):.4f})"
        measured = "".join(f"  {name} {found:.4g}" for name, found in (result.get("metrics") or {}).items())
        self._print(f"{trial_id}  step {step}/{steps}  eval loss {loss:.4f}{measured}{best}")

    def became(self, trial_id: str, other: str, step: int, config: dict[str, Any]) -> None:
        """A trial goes on from there as a copy of another one, with this configuration."""
        self._running[trial_id] = config
        self._print(f"{trial_id}  step {step}: goes on as a copy of {other}, with {describe(config, self._axes)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped."""
        result = trial.last_result or {}
        status = result.get("status") if result.get("status") in STATUSES else "stopped"
        self._end(trial.config, str(status), result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The pool could not take a trial, or is gone."""
        self._end(trial.config, "failed", {"reason": UNANSWERED})

    def search_ends(self, why: str, total: int) -> None:
        """No more trials are asked for that search.

        Args:
            total: trials of the whole sweep, now; with `confirm`, at most.
        """
        self._total = total
        self._bar.update(self._task, total=total)
        line = f"no new trial is asked for: {why}; what has begun goes on to its end"
        self._console.print(line, style="yellow", markup=False, highlight=False)

    def grown(self, total: int) -> None:
        """There are more trials now, or it is known how many are confirmed: so many in the whole sweep."""
        self._total = total
        self._bar.update(self._task, total=total)

    def steered(self, what: str) -> None:
        """Somebody did something to the sweep."""
        self._console.print(what, style="yellow", markup=False, highlight=False)

    def end_twin(self, twin: Twin) -> None:
        """A trial has ended with another one, whose configuration it has."""
        self._end(twin.suggestion, twin.status, {"reason": twin.reason})

    def _end(self, config: dict[str, Any], status: str, result: dict[str, Any]) -> None:
        trial_id = config["trial_id"]
        own = self._running.pop(trial_id, config["config"])
        self._came_to.pop(trial_id, None)
        self._steps += int(result.get("step") or 0)
        reason = f": {result['reason']}" if result.get("reason") else ""
        at = f" at step {result.get('step', 0)}" if status == "stopped" else ""
        confirms = f"  confirms {of}" if (of := config["config"].get("confirms")) else ""
        line = f"{trial_id}  {status}{at}  {describe(own, self._axes)}{confirms}{reason}"
        self._ended.append(line)
        self._bar.update(self._task, completed=self._done + len(self._ended))
        self._print(line)

    def _draw(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("running", style="bold")
        table.add_column("step", justify="right")
        table.add_column("train loss", justify="right")
        table.add_column("")
        for trial_id, progress in sorted(self._status.running.items(), key=lambda one: in_order(one[0])):
            config = self._running.get(trial_id)
            if config is None:
                continue
            step, loss = (progress.step, progress.train_loss) if progress is not None else (0, math.nan)
            shown = f"{loss:.4f}" if math.isfinite(loss) else "–"
            table.add_row(trial_id, f"{step}/{config['steps']}", shown, describe(config, self._axes))
        packs = self._status.packs
        state = "" if packs.ready else "starting a pack: loading the base …"
        if packs.waiting:
            state = f"packs that wait for a machine: {packs.waiting}"
        best = f"best so far: {self._best[1]} {self._objective.turned(self._best[0]):.4f}" if self._best else ""
        waiting = len(self._status.waiting)
        tail = [Text(line, style="dim") for line in self._ended[-SHOWN:]]
        summary = [part for part in (best, state, f"{waiting} waiting" if waiting else "") if part]
        return Group(self._bar, table, Text("  ".join(summary)), *tail)


def outcome(console: Console, told: Mapping[str, Any]) -> None:
    """Say what a report says: the verdict in its line, and the quantizers side by side.

    Args:
        told: `reports.pages.summary`.
    """
    console.print(told["line"], style="bold", markup=False, highlight=False)
    for line in quantizer_lines(told):
        console.print(line, markup=False, highlight=False)
