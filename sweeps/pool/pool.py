"""The pool: who waits, who runs where, what each trial has reported.

One actor, all of it on one asyncio loop, so nothing here needs a lock. The driver (`sweeps.pool.feed`) calls it from one
side, the first worker of each pack (`sweeps.pack.first_link`) from the other. Nobody waits for it but with a reason:
`results` for what trials have come to, `commands` for something to do, `released` for a slot to be empty. As many calls
wait here at once as there are packs, and a few: there may be any number of trials.

Ray's facts it is built on: an answer may be lost on its way, so results and commands are kept until it is known that they
have arrived; calls of one caller may overtake each other.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, Final

from bitlora import timeouts
from bitlora.files.record import Status, in_order
from sweeps.pool.common import CommonGround
from sweeps.pool.entry import Entry
from sweeps.pool.messages import (
    Attach,
    Command,
    Continue,
    Detach,
    PoolStatus,
    StepProgress,
    Stop,
    TrialResult,
)
from sweeps.pool.packs import START_ATTEMPTS, PackHandle, Packs
from sweeps.pool.steerable import Steerable
from sweeps.search.cloning.place import Source

POOL: Final = "pool"
"""The pool's name in the sweep's own namespace."""
AHEAD: Final = 2
"""Trials that a pack gets beyond its slots, to go on with at once when one is free."""
INTERRUPTED_REASON: Final = "the sweep was interrupted"


class Pool(Steerable, CommonGround):
    """See the module.

    Args:
        settings: what a pack's workers need (`sweeps.pack.settings.PackSettings`).
        host_class: of the actors that run the packs (`sweeps.pack.host.PackHost`).
        slots: of each pack, at most: how many it has it says when it is ready.
        packs: the fewest that are kept up until the sweep ends, and the most.
        patience: how long a pack may wait for room, in seconds.
    """

    def __init__(
        self,
        settings: Any,
        host_class: Any,
        slots: int,
        packs: tuple[int, int],
        patience: float = timeouts.PACK_START_LOCAL_S,
    ) -> None:
        super().__init__(settings)
        self._trials: dict[str, Entry] = {}
        self._waiting: list[str] = []
        """In the order of their ids, which is the order in which they were asked for."""
        self._results: list[TrialResult] = []
        """Those of which it is not known that the driver has them."""
        self._arrived = 0
        """Results of which that is known."""
        self._news = asyncio.Event()
        self._closing = False
        self._begun = False
        """Has any trial reported anything, in this run of the sweep or in one before?"""
        self._unwritable = 0
        """Packs in a row that could not write to the sweep's folder."""
        self._notes: dict[str, None] = {}
        """What packs want a person to know."""
        self._given_up = ""
        """Why the sweep cannot go on."""
        self._packs = Packs(
            host_class,
            slots,
            packs,
            patience,
            waiting=lambda: len(self._waiting) if self._trials else None,
            ended=self._pack_ended,
            tick=self._dispatch,
        )

    # ---- the side of trials and driver

    async def start(self) -> None:
        """Start the first packs: trials are on their way."""
        self._packs.begin()

    async def attach(
        self,
        trial_id: str,
        config: dict[str, Any],
        reported: int | None = None,
        source: Source | None = None,
        until: int | None = None,
    ) -> None:
        """A trial wants a slot. May be said more than once.

        Args:
            reported: of a trial that goes on from an earlier run of the sweep, the last step it has reported.
            source: what it begins as a copy of.
            until: the step at which it leaves its slot until `go_on`; one that has reported it waits for that at once.
        """
        if trial_id in self._trials:
            return
        self._begun = self._begun or reported is not None
        nothing = -1 if config.get("warm_start") else 0  # such a one is evaluated before its first step
        reported, resumes = (nothing, False) if reported is None else (reported, True)
        self._trials[trial_id] = entry = Entry(config, reported=reported, resumes=resumes)
        entry.source, entry.until = source, until
        if self._given_up or self._closing:
            self._end(trial_id, self._undone, self._given_up or INTERRUPTED_REASON)
        elif until is None or entry.reported < until:
            bisect.insort(self._waiting, trial_id, key=in_order)
            self._dispatch()

    async def results(self, received: int = 0) -> list[TrialResult]:
        """What trials have come to, of each in order; an empty list after a few quiet seconds.

        Args:
            received: how many results have arrived at the driver. What has not arrived is given again.
        """
        del self._results[: max(0, received - self._arrived)]
        self._arrived = max(self._arrived, received)
        if not self._results:
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeouts.POOL_POLL_S)
        return list(self._results)

    async def proceed(self, trial_id: str, count: int) -> None:
        """The trial is not stopped for its last result, which is that of this number, counted from 1."""
        entry = self._trials.get(trial_id)
        if entry is None or entry.ended or entry.count != count:
            return
        if (pack := self._packs.named.get(entry.pack or "")) is not None:
            pack.send(Continue(trial_id))

    async def go_on(self, trial_id: str, config: dict[str, Any], source: Source, until: int | None) -> None:
        """The trial, which has left its slot, goes on as a copy of `source`, of itself or of another, with this
        configuration. May be said more than once.

        Args:
            until: as `attach` has it.
        """
        entry = self._trials.get(trial_id)
        if entry is None or entry.ended or entry.until is None or entry.until != source.step:
            return
        entry.config, entry.source, entry.until = config, source, until
        bisect.insort(self._waiting, trial_id, key=in_order)
        self._dispatch()

    async def detach(self, trial_id: str) -> None:
        """The trial is stopped: its slot is free for the next one. May be said more than once."""
        entry = self._trials.get(trial_id)
        if entry is not None and not entry.ended:
            self._remove(trial_id, entry)
            self._dispatch()

    async def released(self, trial_id: str) -> None:
        """Returns when the pack has let the trial go and its files are final."""
        entry = self._trials.get(trial_id)
        if entry is not None:
            await entry.released.wait()

    async def status(self) -> PoolStatus:
        """What progress shows."""
        running = {t: self._trials[t].progress for pack in self._packs.named.values() for t in pack.trials}
        return PoolStatus(tuple(self._waiting), running, self._packs.counts(), tuple(self._notes))

    async def interrupt(self, reason: str = INTERRUPTED_REASON) -> None:
        """End every trial that has not ended, as interrupted; no new one begins."""
        self._closing = True
        for trial_id, entry in self._trials.items():
            if not entry.ended:
                self._end(trial_id, "interrupted", reason)

    async def close(self) -> float:
        """End all packs; returns when none is left and their placement groups are gone.

        Returns:
            Seconds that packs were up, summed.
        """
        await self.interrupt()
        await self._packs.close()
        return self._packs.seconds

    # ---- the side of packs

    async def pack_started(self, name: str, node: str = "") -> None:
        """A worker of the pack runs, on the node with this id."""
        if (pack := self._packs.named.get(name)) is not None:
            pack.started = True
            pack.nodes |= {node} - {""}
            pack.since = pack.up = time.monotonic()

    async def pack_ready(self, name: str, slots: int | None = None, notes: Sequence[str] = ()) -> None:
        """The pack has its base and can train, so many trials at once (None: as many as it may have). `notes`: what a
        person should know of it."""
        self._notes |= dict.fromkeys(notes)
        if (pack := self._packs.named.get(name)) is not None:
            pack.started = pack.ready = True
            pack.measures = False
            pack.slots = slots or pack.slots
            pack.since = time.monotonic()
            self._introduce(pack)
            self._dispatch()

    async def pack_failed(self, name: str, error: str, unwritable: bool = False) -> None:
        """The pack says in one line why it is about to end, by its first word. `unwritable`: it could not write to the
        sweep's folder, which is no trial's doing."""
        if (pack := self._packs.named.get(name)) is not None and not pack.unwritable:
            pack.error, pack.unwritable = error, unwritable

    async def pack_wrote(self, name: str) -> None:
        """The pack, which is to end, has written one of its last files: it has its time anew for the next one."""
        if (pack := self._packs.named.get(name)) is not None:
            pack.since = time.monotonic()

    async def commands(self, name: str, received: int = 0) -> list[Command]:
        """What the pack is to do, in order; an empty list after a few quiet seconds.

        Args:
            received: how many commands have arrived there. An answer may be lost on its way: what has not arrived is given
                again.
        """
        pack = self._packs.named.get(name)
        if pack is None:
            return [Stop()]
        pack.acknowledge(received)
        if not pack.commands:
            pack.woken.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(pack.woken.wait(), timeouts.POOL_POLL_S)
        return list(pack.commands)

    async def evaluated(self, name: str, trial_id: str) -> bool:
        """Is this evaluation still wanted? Asked before its files take the place of those of the one before."""
        entry = self._trials.get(trial_id)
        return entry is not None and entry.pack == name and not entry.ended

    async def report(self, name: str, result: TrialResult) -> None:
        """A trial was evaluated, or ended by itself. Its files were written before this was said."""
        trial_id = result.trial_id
        entry = self._trials.get(trial_id)
        if entry is None or entry.ended or entry.pack != name:
            return
        if result.ended:
            self._remove(trial_id, entry, tell=False)
        elif result.step <= entry.reported:  # a later one overtook it
            return
        if result.left:
            self._packs.named[name].trials.discard(trial_id)
            self._packs.named[name].since = time.monotonic()
            entry.pack = entry.progress = None
        self._unwritable = 0
        self._begun = True
        entry.furthest = max(entry.furthest, result.step)
        entry.suspicion.reported(result.step)
        self._tell_others(result, [pack for other, pack in self._packs.named.items() if other != name and pack.ready])
        self._deliver(entry, result)
        self._stop_if_asked(trial_id, entry)
        self._dispatch()

    async def slot_released(self, name: str, trial_id: str) -> None:
        """The pack has emptied the trial's slot and written its last file. It may overtake the report of its end."""
        entry = self._trials.get(trial_id)
        if entry is not None and entry.pack == name:
            entry.released.set()

    async def progress(self, name: str, steps: dict[str, StepProgress]) -> None:
        """The last steps of the pack's trials."""
        pack = self._packs.named.get(name)
        if pack is None:
            return
        self._packs.mark_productive(pack)
        for trial_id in pack.trials & steps.keys():
            entry = self._trials[trial_id]
            entry.progress = steps[trial_id]
            entry.furthest = max(entry.furthest, steps[trial_id].step)
            entry.suspicion.took(steps[trial_id].step)

    # ---- inside

    @property
    def _undone(self) -> Status:
        """How trials end with the sweep: where nothing ever came up, there is nothing to go on with."""
        return "failed" if self._packs.broken and not self._begun else "interrupted"

    def _measures(self, name: str, measures: bool) -> None:
        if (pack := self._packs.named.get(name)) is not None:
            pack.measures = measures

    def _remove(self, trial_id: str, entry: Entry, tell: bool = True) -> None:
        """Take a trial out of the queue or out of its pack."""
        entry.ended = True
        entry.settle(False)
        pack = self._packs.named.get(entry.pack or "")
        if pack is None:
            if trial_id in self._waiting:
                self._waiting.remove(trial_id)
            entry.released.set()
            return
        pack.trials.discard(trial_id)
        pack.since = time.monotonic()
        if tell:
            pack.send(Detach(trial_id))

    def _end(self, trial_id: str, status: Status, reason: str) -> None:
        """End a trial from here; the driver hears of it as of any result."""
        entry = self._trials[trial_id]
        self._remove(trial_id, entry)
        result = TrialResult(
            trial_id=trial_id,
            status=status,
            reason=reason,
            step=max(0, entry.reported),
            eval_loss=math.nan,
            fatal=bool(self._given_up),
        )
        self._deliver(entry, result)

    def _deliver(self, entry: Entry, result: TrialResult) -> None:
        entry.count += 1
        entry.reported = max(entry.reported, result.step)
        self._results.append(result)
        self._news.set()

    def _dispatch(self) -> None:
        """Give waiting trials to packs, those with free slots first; start packs where there are more than they hold."""
        self._assign(0, leave=0)
        if not self._closing:
            self._packs.scale_up()
        # Not those that a pack which is coming would then lack.
        self._assign(AHEAD, leave=self._packs.coming())

    def _assign(self, ahead: int, leave: int) -> None:
        """Give each the pack with the most room: where there are several, none idles beside a full one.

        Args:
            ahead: trials that a pack may have beyond its slots.
            leave: trials that stay in the queue.
        """
        taking = {name: pack for name, pack in self._packs.named.items() if pack.ready and not pack.stopping}
        while taking and len(self._waiting) > leave:
            name, pack = min(taking.items(), key=lambda item: len(item[1].trials) - item[1].slots)
            trial_id = self._next_for(pack) if len(pack.trials) < pack.slots + ahead else None
            if trial_id is None:
                del taking[name]
                continue
            self._waiting.remove(trial_id)
            entry = self._trials[trial_id]
            entry.pack = name
            pack.trials.add(trial_id)
            pack.send(Attach(trial_id, entry.config, entry.reported, entry.resumes, entry.source, entry.until))
            entry.resumes = True

    def _next_for(self, pack: PackHandle) -> str | None:
        """The first waiting trial that may join those in the pack; an empty one goes to suspects first."""
        inside = [self._trials[trial_id].suspicion for trial_id in pack.trials]
        joining = [trial_id for trial_id in self._waiting if self._trials[trial_id].suspicion.may_join(inside)]
        suspects = [trial_id for trial_id in joining if self._trials[trial_id].suspicion.active]
        return next(iter(suspects or joining), None)

    def _pack_ended(self, name: str, pack: PackHandle, error: str) -> None:
        """Nothing of the pack is left: its trials are queued again, or have failed."""
        self._pack_gone(name, pack.innocent, pack.stopping)
        for entry in self._trials.values():
            if entry.pack == name and entry.ended:
                entry.released.set()
        for trial_id in sorted(pack.trials, key=in_order):
            entry = self._trials[trial_id]
            entry.pack = entry.progress = None
            if pack.suspicious and entry.suspicion.lost(len(pack.trials), entry.furthest):
                self._end(trial_id, "failed", f"its pack was lost: {error}")
                self._packs.blamed(error)
            else:
                entry.settle(True)
                entry.released.clear()
                bisect.insort(self._waiting, trial_id, key=in_order)
        self._unwritable += pack.unwritable
        self._given_up = self._given_up or self._packs.broken or (error if self._unwritable >= START_ATTEMPTS else "")
        if self._given_up:
            for trial_id in list(self._waiting):
                self._end(trial_id, self._undone, self._given_up)
        self._dispatch()
