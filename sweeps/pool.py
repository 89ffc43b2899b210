"""The pool: who waits, who runs where, what each trial has reported; it starts packs and lets them go.

One actor, all of it on one asyncio loop, so nothing here needs a lock. Trials (`sweeps.trial`) and the driver call it
from one side, the first worker of each pack (`sweeps.worker`) from the other. Nobody waits for it but with a reason:
`next_result` for a result, `commands` for something to do, `released` for a slot to be empty.

Ray's facts it is built on: killing an actor that called `fit()` leaves its placement group standing, so the pool removes
it; a run name that is used again resumes the old run, so each start has a fresh one.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

POOL: Final = "pool"
"""The pool's name in the sweep's own namespace."""

POLL_S: Final = 5.0
"""How long `commands` waits before it answers with nothing."""
IDLE_S: Final = 30.0
"""A pack without a trial ends after this."""
START_ATTEMPTS: Final = 2
"""Packs that may fail to come up in a row before the sweep is given up."""
CLOSE_S: Final = 3.0
"""How long packs have to end by themselves when the sweep does."""

INTERRUPTED_REASON: Final = "the sweep was interrupted"

Command = tuple[Literal["attach", "detach", "stop"], Any]
Result = dict[str, Any]
"""`trial_id`, `status` ("running" or how it ended), `reason`, `step`, `eval_loss`; `fatal`: no pack can be started."""


@dataclass(slots=True)
class Entry:
    """A trial, as the pool sees it."""

    config: dict[str, Any]
    state: Literal["waiting", "running", "ended"] = "waiting"
    pack: str | None = None
    attempts: int = 0
    """Packs it has lost."""
    reported: int = 0
    """The last step it has reported; a trial that begins again stays silent until it is past it."""
    last: Result | None = None
    outbox: deque[Result] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    progress: tuple[int, float] | None = None
    """(step, train loss) of its last step."""


@dataclass(slots=True)
class Pack:
    """A pack, as the pool sees it."""

    host: Any
    started: float
    ready: bool = False
    group: str | None = None
    """Its placement group's id, in hex, once its first worker has said so."""
    pid: int | None = None
    """Of its first worker."""
    trials: set[str] = field(default_factory=set)
    commands: deque[Command] = field(default_factory=deque)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    error: str = ""
    idle_since: float | None = None
    stopping: bool = False

    def tell(self, command: Command) -> None:
        self.commands.append(command)
        self.woken.set()


class Pool:
    """See the module. `settings` is what a pack's workers need (`sweeps.worker.Settings`); `slots` each pack has."""

    def __init__(self, settings: Any, host_class: Any, slots: int, packs: int) -> None:
        self._settings = settings
        self._host_class = host_class
        self._slots = slots
        self._max_packs = packs
        self._trials: dict[str, Entry] = {}
        self._waiting: list[str] = []
        """In the order of their ids, which is the order in which they were asked for."""
        self._packs: dict[str, Pack] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed_starts = 0
        self._started = 0
        self._broken = ""
        self._closing = False

    # ---- the side of trials and driver

    async def start(self) -> None:
        """Start the first pack: trials are on their way."""
        self._start_pack()

    async def attach(self, trial_id: str, config: dict[str, Any]) -> None:
        """A trial wants a slot. One that is known already (its actor was restarted) goes on where it is."""
        entry = self._trials.get(trial_id)
        if entry is not None:
            if entry.last is not None and not entry.outbox:
                self._deliver(entry, entry.last)
            return
        self._trials[trial_id] = Entry(config)
        if self._broken or self._closing:
            self._end(
                trial_id, "failed" if self._broken else "interrupted", self._broken or "the sweep was interrupted"
            )
            return
        self._queue(trial_id)
        self._dispatch()

    async def next_result(self, trial_id: str) -> Result:
        """The trial's next result, as soon as there is one."""
        entry = self._trials[trial_id]
        while not entry.outbox:
            entry.arrived.clear()
            await entry.arrived.wait()
        return entry.outbox.popleft()

    async def detach(self, trial_id: str) -> None:
        """The trial is stopped: its slot is free for the next one. May be said more than once."""
        entry = self._trials.get(trial_id)
        if entry is None or entry.state == "ended":
            return
        self._leave(trial_id, entry)
        self._dispatch()

    async def released(self, trial_id: str) -> None:
        """Returns when the pack has let the trial go and its files are final."""
        entry = self._trials.get(trial_id)
        if entry is not None:
            await entry.released.wait()

    async def status(self) -> dict[str, Any]:
        """What progress shows and tests look at."""
        return {
            "waiting": list(self._waiting),
            "running": {t: e.progress for t, e in self._trials.items() if e.state == "running"},
            "packs": {
                name: {"ready": p.ready, "pid": p.pid, "trials": sorted(p.trials)} for name, p in self._packs.items()
            },
            "packs_started": self._started,
            "broken": self._broken,
        }

    async def hosts(self) -> dict[str, Any]:
        """The packs' host actors, by pack."""
        return {name: pack.host for name, pack in self._packs.items()}

    async def interrupt(self) -> None:
        """End every trial that has not ended, as interrupted; no new one begins."""
        self._closing = True
        for trial_id, entry in self._trials.items():
            if entry.state != "ended":
                self._end(trial_id, "interrupted", INTERRUPTED_REASON)

    async def close(self) -> None:
        """End all packs; returns when none is left and their placement groups are gone."""
        await self.interrupt()
        for pack in list(self._packs.values()):
            self._stop(pack)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        for pack in self._packs.values():
            ray.kill(pack.host)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)

    # ---- the side of packs

    async def settings(self) -> Any:
        """What a worker needs to load the base and train."""
        return self._settings

    async def pack_ready(self, name: str, group: str, pid: int) -> None:
        """The pack has its base and can train. `group`: its placement group's id in hex."""
        pack = self._packs.get(name)
        if pack is None:
            return
        pack.ready, pack.group, pack.pid, pack.idle_since = True, group, pid, time.monotonic()
        self._failed_starts = 0
        self._dispatch()

    async def pack_failed(self, name: str, error: str) -> None:
        """The pack says in one line why it is about to end."""
        if name in self._packs:
            self._packs[name].error = error

    async def commands(self, name: str) -> list[Command]:
        """What the pack is to do, in order; an empty list after a few quiet seconds."""
        pack = self._packs.get(name)
        if pack is None:
            return [("stop", None)]
        if not pack.commands:
            pack.woken.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(pack.woken.wait(), POLL_S)
        taken = list(pack.commands)
        pack.commands.clear()
        return taken

    async def report(self, name: str, result: Result) -> None:
        """A trial was evaluated, or ended by itself. Its files were written before this was said."""
        trial_id = result["trial_id"]
        entry = self._trials.get(trial_id)
        if entry is None or entry.state != "running" or entry.pack != name:
            return
        if result["status"] != "running":
            self._leave(trial_id, entry, tell=False)
        elif result["step"] <= entry.reported:
            return
        entry.reported = result["step"]
        self._deliver(entry, result)
        self._dispatch()

    async def let_go(self, name: str, trial_id: str) -> None:
        """The pack has emptied the trial's slot and written its last file."""
        entry = self._trials.get(trial_id)
        if entry is not None and entry.pack == name:
            entry.released.set()

    async def progress(self, name: str, steps: dict[str, tuple[int, float]]) -> None:
        """(step, train loss) of the pack's trials."""
        for trial_id, step in steps.items():
            entry = self._trials.get(trial_id)
            if entry is not None and entry.pack == name:
                entry.progress = step

    # ---- inside

    def _queue(self, trial_id: str) -> None:
        bisect.insort(self._waiting, trial_id)

    def _deliver(self, entry: Entry, result: Result) -> None:
        entry.last = result
        entry.outbox.append(result)
        entry.arrived.set()

    def _leave(self, trial_id: str, entry: Entry, tell: bool = True) -> None:
        """Take a trial out of the queue or out of its pack."""
        entry.state = "ended"
        pack = self._packs.get(entry.pack or "")
        if pack is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(trial_id)
            entry.released.set()
            return
        pack.trials.discard(trial_id)
        if not pack.trials:
            pack.idle_since = time.monotonic()
        if tell:
            pack.tell(("detach", trial_id))

    def _end(self, trial_id: str, status: str, reason: str) -> None:
        """End a trial from here; its actor hears of it as of any result."""
        entry = self._trials[trial_id]
        self._leave(trial_id, entry)
        step = entry.reported
        result = {"trial_id": trial_id, "status": status, "reason": reason, "step": step, "eval_loss": float("nan")}
        self._deliver(entry, {**result, "fatal": bool(self._broken)})

    def _dispatch(self) -> None:
        """Give free slots to waiting trials; start a pack where there are more trials than slots."""
        for name, pack in self._packs.items():
            while self._waiting and pack.ready and not pack.stopping and len(pack.trials) < self._slots:
                trial_id = self._waiting.pop(0)
                entry = self._trials[trial_id]
                entry.state, entry.pack = "running", name
                pack.trials.add(trial_id)
                pack.idle_since = None
                pack.tell(("attach", (trial_id, entry.config)))
        # One start at a time: a group that no pack has claimed then belongs to the pack that starts.
        starting = any(not pack.ready for pack in self._packs.values())
        live = sum(not pack.stopping for pack in self._packs.values())
        if self._waiting and not starting and live < self._max_packs and not self._closing and not self._broken:
            self._start_pack()

    def _start_pack(self) -> None:
        self._started += 1
        name = f"pack-{self._started}-{uuid.uuid4().hex[:6]}"
        host = self._host_class.remote()
        self._packs[name] = Pack(host, time.monotonic())
        for task in (self._run_pack(name, host), self._watch_idle(name)):
            running = asyncio.get_running_loop().create_task(task)
            self._tasks.add(running)
            running.add_done_callback(self._tasks.discard)

    async def _run_pack(self, name: str, host: Any) -> None:
        """From a pack's start to the last trace of it."""
        error = ""
        try:
            await host.run.remote(name)
        except Exception as failure:  # whatever ended it, its trials must not wait for ever
            cause = getattr(failure, "cause", None) or failure
            error = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            if isinstance(failure, ray.exceptions.RayActorError):
                error = "its host process died"
        pack = self._packs.pop(name)
        with contextlib.suppress(Exception):
            ray.kill(host)
        self._remove_groups(pack)
        error = pack.error or error or "it ended by itself"
        if not pack.ready and not pack.stopping:
            self._failed_starts += 1
        lost = sorted(pack.trials)
        for entry in self._trials.values():
            if entry.pack == name and entry.state == "ended":
                entry.released.set()
        for trial_id in lost:
            entry = self._trials[trial_id]
            entry.attempts += 1
            entry.pack, entry.progress = None, None
            if entry.attempts >= START_ATTEMPTS or self._closing:
                self._end(trial_id, "failed", f"its pack was lost: {error}")
            else:
                entry.state = "waiting"
                self._queue(trial_id)
        if self._failed_starts >= START_ATTEMPTS:
            self._broken = f"no pack could be started: {error}"
            for trial_id in list(self._waiting):
                self._end(trial_id, "failed", self._broken)
        self._dispatch()

    async def _watch_idle(self, name: str) -> None:
        while (pack := self._packs.get(name)) is not None and not pack.stopping:
            if pack.idle_since is not None and time.monotonic() - pack.idle_since > IDLE_S:
                self._stop(pack)
                return
            await asyncio.sleep(1)

    def _stop(self, pack: Pack) -> None:
        """Ask a pack to end; one that is not up yet would not hear it, so its host is ended."""
        pack.stopping = True
        if pack.ready:
            pack.tell(("stop", None))
        else:
            ray.kill(pack.host)

    def _remove_groups(self, gone: Pack) -> None:
        """Remove the pack's placement group; where it never said which, those of this job that no pack claims."""
        job = ray.get_runtime_context().get_job_id()
        claimed = {pack.group for pack in self._packs.values()}
        for group, info in placement_group_table().items():
            of_trials = any("node:__internal_head__" in bundle for bundle in info["bundles"].values())
            if info["state"] == "REMOVED" or not group.endswith(job) or of_trials or group in claimed:
                continue
            if gone.group in (None, group):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
