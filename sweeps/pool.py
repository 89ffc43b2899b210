"""The pool: who waits, who runs where, what each trial has reported; it starts packs and lets them go.

One actor, all of it on one asyncio loop, so nothing here needs a lock. Trials (`sweeps.trial`) and the driver call it
from one side, the first worker of each pack (`sweeps.worker`) from the other. Nobody waits for it but with a reason:
`next_result` for a result, `commands` for something to do, `released` for a slot to be empty.

Ray's facts it is built on: killing an actor that called `fit()` leaves its placement group standing, so the pool removes
it; a run name that is used again resumes the old run, so each start has a fresh one; a call of an actor that died goes on
waiting here, so a result is read by its number and never taken out.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

logger = logging.getLogger(__name__)

POOL: Final = "pool"
"""The pool's name in the sweep's own namespace."""

HEAD: Final = {"node:__internal_head__": 0.001}
"""Asked for by what must not sit on a machine that vanishes: trials, the pool, the packs' hosts."""

POLL_S: Final = 5.0
"""How long `commands` waits before it answers with nothing."""
AHEAD: Final = 2
"""Trials that a pack gets beyond its slots, to go on with at once when one is free."""
IDLE_S: Final = 30.0
"""A pack without a trial ends after this."""
START_ATTEMPTS: Final = 2
"""Packs that may end in a row before any took a step, until the sweep is given up; and packs that a trial may lose."""
BEGIN_S: Final = 180.0
"""How long the cluster has to find room for a pack."""
CLOSE_S: Final = 20.0
"""How long packs have to end by themselves when the sweep does."""

INTERRUPTED_REASON: Final = "the sweep was interrupted"

Command = tuple[Literal["attach", "detach", "stop"], Any]
Result = dict[str, Any]
"""`trial_id`, `status` ("running" or how it ended), `reason`, `step`, `eval_loss`; `fatal`: no pack can be started."""


@dataclass(slots=True)
class Entry:
    """A trial, as the pool sees it."""

    config: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    pack: str | None = None
    lost: int = 0
    """Packs it has lost in which it had taken a step."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    progress: tuple[int, float] | None = None
    """(step, train loss) of its last step."""

    @property
    def reported(self) -> int:
        """The last step it has reported; a trial that begins again is silent until it is past it."""
        return max((result["step"] for result in self.results), default=0)

    def deliver(self, result: Result) -> None:
        self.results.append(result)
        self.arrived.set()


@dataclass(slots=True)
class Pack:
    """A pack, as the pool sees it."""

    host: Any
    begun: bool = False
    """Its worker runs."""
    ready: bool = False
    """It has its base."""
    worked: bool = False
    """It has taken a step."""
    group: str | None = None
    """Its placement group's id, in hex, once its worker runs."""
    trials: set[str] = field(default_factory=set)
    commands: list[Command] = field(default_factory=list)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    error: str = ""
    since: float = field(default_factory=time.monotonic)
    """When it was started, or last had a trial."""
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

    async def attach(self, trial_id: str, config: dict[str, Any]) -> int:
        """A trial wants a slot. One that is known already (its actor was restarted) goes on where it is.

        Returns:
            The number of the next result to ask for. The last one is given again to a restarted actor: whether the one
            before had passed it on is not known, and Tune takes it twice.
        """
        entry = self._trials.get(trial_id)
        if entry is not None:
            if entry.ended and not any(result["status"] != "running" for result in entry.results):
                self._end(trial_id, "failed", "its actor died when it had been stopped")
            return max(0, len(entry.results) - 1)
        self._trials[trial_id] = Entry(config)
        if self._broken or self._closing:
            self._end(trial_id, "failed" if self._broken else "interrupted", self._broken or INTERRUPTED_REASON)
        else:
            bisect.insort(self._waiting, trial_id)
            self._dispatch()
        return 0

    async def next_result(self, trial_id: str, number: int) -> Result:
        """The trial's result of that number, counted from 0, as soon as there is one."""
        entry = self._trials[trial_id]
        while len(entry.results) <= number:
            entry.arrived.clear()
            await entry.arrived.wait()
        return entry.results[number]

    async def detach(self, trial_id: str) -> None:
        """The trial is stopped: its slot is free for the next one. May be said more than once."""
        entry = self._trials.get(trial_id)
        if entry is not None and not entry.ended:
            self._leave(trial_id, entry)
            self._dispatch()

    async def released(self, trial_id: str) -> None:
        """Returns when the pack has let the trial go and its files are final."""
        entry = self._trials.get(trial_id)
        if entry is not None:
            await entry.released.wait()

    async def status(self) -> dict[str, Any]:
        """What progress shows."""
        return {
            "waiting": list(self._waiting),
            "running": {t: self._trials[t].progress for pack in self._packs.values() for t in pack.trials},
            "ready": any(pack.ready for pack in self._packs.values()),
        }

    async def interrupt(self) -> None:
        """End every trial that has not ended, as interrupted; no new one begins."""
        self._closing = True
        for trial_id, entry in self._trials.items():
            if not entry.ended:
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

    async def pack_begun(self, name: str, group: str) -> None:
        """The pack's worker runs. `group`: its placement group's id in hex."""
        if (pack := self._packs.get(name)) is not None:
            pack.begun, pack.group = True, group

    async def pack_ready(self, name: str) -> None:
        """The pack has its base and can train."""
        if (pack := self._packs.get(name)) is not None:
            pack.ready, pack.since = True, time.monotonic()
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
        taken, pack.commands = pack.commands, []
        return taken

    async def evaluated(self, name: str, trial_id: str) -> bool:
        """Is this evaluation still wanted? Asked before its files take the place of those of the one before."""
        entry = self._trials.get(trial_id)
        return entry is not None and entry.pack == name and not entry.ended

    async def report(self, name: str, result: Result) -> None:
        """A trial was evaluated, or ended by itself. Its files were written before this was said."""
        trial_id = result["trial_id"]
        entry = self._trials.get(trial_id)
        if entry is None or entry.ended or entry.pack != name:
            return
        if result["status"] != "running":
            self._leave(trial_id, entry, tell=False)
        entry.deliver(result)
        self._dispatch()

    async def let_go(self, name: str, trial_id: str) -> None:
        """The pack has emptied the trial's slot and written its last file."""
        entry = self._trials.get(trial_id)
        if entry is not None and entry.pack == name and entry.ended:
            entry.released.set()

    async def progress(self, name: str, steps: dict[str, tuple[int, float]]) -> None:
        """(step, train loss) of the pack's trials."""
        pack = self._packs.get(name)
        if pack is None:
            return
        pack.worked, self._failed_starts = True, 0
        for trial_id in pack.trials & steps.keys():
            self._trials[trial_id].progress = steps[trial_id]

    # ---- inside

    def _leave(self, trial_id: str, entry: Entry, tell: bool = True) -> None:
        """Take a trial out of the queue or out of its pack."""
        entry.ended = True
        pack = self._packs.get(entry.pack or "")
        if pack is None:
            if trial_id in self._waiting:
                self._waiting.remove(trial_id)
            entry.released.set()
            return
        pack.trials.discard(trial_id)
        pack.since = time.monotonic()
        if tell:
            pack.tell(("detach", trial_id))

    def _end(self, trial_id: str, status: str, reason: str) -> None:
        """End a trial from here; its actor hears of it as of any result."""
        entry = self._trials[trial_id]
        self._leave(trial_id, entry)
        fatal = bool(self._broken)
        step, nan = entry.reported, float("nan")
        entry.deliver(
            {"trial_id": trial_id, "status": status, "reason": reason, "step": step, "eval_loss": nan, "fatal": fatal}
        )

    def _dispatch(self) -> None:
        """Give waiting trials to packs, those with free slots first; start a pack where there are more than they hold."""
        for limit in (self._slots, self._slots + AHEAD):
            for name, pack in self._packs.items():
                while self._waiting and pack.ready and not pack.stopping and len(pack.trials) < limit:
                    trial_id = self._waiting.pop(0)
                    entry = self._trials[trial_id]
                    entry.pack = name
                    pack.trials.add(trial_id)
                    pack.tell(("attach", (trial_id, entry.config, entry.reported)))
        # One start at a time: a group that no pack has claimed then belongs to the pack that starts.
        starting = any(not pack.ready for pack in self._packs.values())
        live = sum(not pack.stopping for pack in self._packs.values())
        if self._waiting and not starting and live < self._max_packs and not self._closing and not self._broken:
            self._start_pack()

    def _start_pack(self) -> None:
        self._started += 1
        name = f"pack-{self._started}-{uuid.uuid4().hex[:6]}"
        pack = self._packs[name] = Pack(self._host_class.remote())
        for task in (self._run_pack(name, pack), self._watch(pack)):
            running = asyncio.get_running_loop().create_task(task)
            self._tasks.add(running)
            running.add_done_callback(self._tasks.discard)

    async def _run_pack(self, name: str, pack: Pack) -> None:
        """From a pack's start to the last trace of it."""
        error = "it ended by itself"
        try:
            await pack.host.run.remote(name)
        except ray.exceptions.RayActorError:
            error = "its host process died"
        except Exception as failure:  # whatever ended it, its trials must not wait for ever
            error = one_line(getattr(failure, "cause", None) or failure)
        error = pack.error or error
        ray.kill(pack.host)
        await self._remove_groups(pack)
        del self._packs[name]
        if not pack.worked and not pack.stopping:
            self._failed_starts += 1
        if self._failed_starts >= START_ATTEMPTS:
            self._broken = f"no pack could be started: {error}"
        for entry in self._trials.values():
            if entry.pack == name and entry.ended:
                entry.released.set()
        for trial_id in sorted(pack.trials):
            entry = self._trials[trial_id]
            entry.lost += entry.progress is not None
            entry.pack = entry.progress = None
            if entry.lost >= START_ATTEMPTS:
                self._end(trial_id, "failed", f"its pack was lost: {error}")
            else:
                entry.released.clear()
                bisect.insort(self._waiting, trial_id)
        if self._broken:
            for trial_id in list(self._waiting):
                self._end(trial_id, "failed", self._broken)
        self._dispatch()

    async def _watch(self, pack: Pack) -> None:
        """End a pack that has had no trial for a while, or for which there is no room."""
        while pack in self._packs.values() and not pack.stopping:
            waited = time.monotonic() - pack.since
            if not pack.begun and waited > BEGIN_S:
                pack.error = f"the cluster had no room for it within {BEGIN_S:.0f} s"
                ray.kill(pack.host)
                return
            if pack.ready and not pack.trials and waited > IDLE_S:
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

    async def _remove_groups(self, gone: Pack) -> None:
        """Remove the pack's placement group; where it never said which, those of this job that no pack claims.

        Twice: the controller of a run dies a moment after its host, and may have made its group in between; and the
        workers of a group that is removed end a moment later.
        """
        job = ray.get_runtime_context().get_job_id()
        claimed = {pack.group for pack in self._packs.values() if pack is not gone}
        for again in (False, True):
            if again:
                await asyncio.sleep(1)
            try:
                for group, info in placement_group_table().items():
                    of_trials = any(HEAD.keys() & bundle.keys() for bundle in info["bundles"].values())
                    if info["state"] == "REMOVED" or not group.endswith(job) or of_trials or group in claimed:
                        continue
                    if gone.group in (None, group):
                        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
            except Exception:  # its trials must be queued again all the same
                logger.exception("placement groups of a pack could not be removed")


def one_line(error: BaseException) -> str:
    """An error in one line for a person: its message's first, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
