"""The packs of a sweep: started while trials wait for one, given up when others have taken those, ended when idle.

A pack asks for machines by the placement group of its Train run alone. The pool knows the group by its name and removes it
when the pack has ended, however it ended: killing the actor that called `fit()` leaves it standing. A run name that is used
again would resume the old run, so each pack's is new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from bitlora import timeouts
from bitlora.config.explain import one_line
from sweeps.onray import cluster
from sweeps.pool.messages import Command, Leave, PackCounts, Stop

logger = logging.getLogger(__name__)
START_ATTEMPTS: Final = 2
"""Packs that may fail to come up in a row, or trials that may be blamed before any took a step, until the sweep is given
up."""


@dataclass(slots=True)
class PackHandle:
    """A pack, as the pool sees it."""

    host: Any
    slots: int
    """At most, until it is ready."""
    started: bool = False
    """Its worker runs."""
    measures: bool = False
    """It tries how much memory it needs: a process that is killed then has asked for too much."""
    ready: bool = False
    """It has its base."""
    up: float | None = None
    """When its first worker ran."""
    productive: bool = False
    """It has taken a step."""
    trials: set[str] = field(default_factory=set)
    commands: list[Command] = field(default_factory=list)
    """Those that it has not acknowledged."""
    acknowledged: int = 0
    """Commands that have arrived there."""
    nodes: set[str] = field(default_factory=set)
    """Ids of the machines on which its workers run."""
    unfortunate: bool = False
    """It was lost with its machine, or with the process that ran it: no trial's doing."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    error: str = ""
    since: float = field(default_factory=time.monotonic)
    """When it was started, began, was ready, last had a trial, was told to stop, or then wrote a file."""
    needed: float = field(default_factory=time.monotonic)
    """When it was last needed, while it waits for a machine."""
    late: bool = False
    """There was no room for it in time."""
    stopping: bool = False
    leaving: bool = False
    """Its machine is going away."""
    unwritable: bool = False
    """It could not write to the sweep's folder."""

    @property
    def suspicious(self) -> bool:
        """Lost in a way that one of its trials may have caused."""
        return self.ready and not self.innocent

    @property
    def innocent(self) -> bool:
        """It did not die of anything that it did."""
        return self.leaving or self.unwritable or self.unfortunate

    @property
    def held_against_a_trial(self) -> bool:
        """A trial is blamed for its loss."""
        return len(self.trials) == 1 and self.suspicious

    @property
    def held_against_the_sweep(self) -> bool:
        """It did not come up, and did not say why: after some of those the sweep is given up."""
        return self.started and not (self.ready or self.stopping or self.error)

    def acknowledge(self, received: int) -> None:
        """So many commands have arrived there."""
        del self.commands[: max(0, received - self.acknowledged)]
        self.acknowledged = max(self.acknowledged, received)

    def send(self, command: Command) -> None:
        self.commands.append(command)
        self.woken.set()

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.trials))


class Packs:
    """See the module. Lives on the pool's asyncio loop.

    Args:
        host_class: of the actors that run the packs (`sweeps.pack.host.PackHost`).
        slots: of each pack, at most.
        limits: the fewest packs, which are kept up until the sweep ends, and the most.
        patience: how long a pack may wait for room, in seconds.
        waiting: says how many trials wait; None: none has come yet.
        ended: told the name of a pack that is gone, the pack, and why.
        tick: called about once a second.
    """

    def __init__(
        self,
        host_class: Any,
        slots: int,
        limits: tuple[int, int],
        patience: float,
        waiting: Callable[[], int | None],
        ended: Callable[[str, PackHandle, str], None],
        tick: Callable[[], None],
    ) -> None:
        self.named: dict[str, PackHandle] = {}
        """In the order in which they were started."""
        self.broken = ""
        """Why no more pack is started: none came up."""
        self._host_class = host_class
        self._slots = slots
        self._min, self._max = limits
        self._patience = patience
        self._waiting = waiting
        self._ended = ended
        self._tick = tick
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._without_room: set[str] = set()
        self._failed_starts = 0
        self._productive = False
        """Has any trial ever taken a step?"""
        self._paused_until = 0.0
        self._started = 0
        self.seconds = 0.0
        """That packs were up which have ended."""

    def live(self) -> list[PackHandle]:
        """Those that are up, and those that are coming."""
        return [pack for pack in self.named.values() if not pack.stopping]

    def _any_started(self) -> bool:
        return any(pack.started for pack in self.live())

    def coming(self) -> int:
        """Slots of packs that are not ready yet."""
        return sum(pack.free for pack in self.live() if not pack.ready)

    def counts(self) -> PackCounts:
        """How many stand where."""
        live = len(self.live())
        ready = sum(pack.ready for pack in self.live())
        waiting = sum(not self.named[name].stopping for name in self._without_room & self.named.keys())
        return PackCounts(ready, live - ready - waiting, waiting)

    def begin(self) -> None:
        """Start the first ones: trials are on their way, or have come already and have packs."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        for _ in range(len(self.live()), max(1, self._min)):
            self._start()

    def scale_up(self) -> None:
        """Start as many as the waiting trials can fill beyond the free slots of those that are up or coming."""
        if self.broken or (self._any_started() and time.monotonic() < self._paused_until):
            return
        unmet = (self._waiting() or 0) - sum(pack.free for pack in self.live())
        for number in range(len(self.live()), self._max):
            if unmet <= 0 and number >= self._min:
                return
            self._start()
            unmet -= self._slots

    def mark_productive(self, pack: PackHandle) -> None:
        """It has taken a step: packs can be started here."""
        pack.productive, self._productive, self._failed_starts = True, True, 0

    async def close(self) -> None:
        """End all; returns when none is left and their placement groups are gone."""
        if self._watcher is not None:
            self._watcher.cancel()
        for pack in self.live():
            self._stop(pack)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeouts.PACK_CLOSE_S)
        for pack in self.named.values():
            ray.kill(pack.host)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeouts.PACK_CLOSE_S)

    def _start(self) -> None:
        self._started += 1
        name = f"pack-{self._started}-{uuid.uuid4().hex[:6]}"
        pack = self.named[name] = PackHandle(self._host_class.remote(), self._slots)
        running = asyncio.get_running_loop().create_task(self._run(name, pack))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def _run(self, name: str, pack: PackHandle) -> None:
        """From a pack's start to the last trace of it."""
        error = "it ended by itself"
        try:
            await pack.host.run.remote(name)
        except ray.exceptions.RayActorError:
            error, pack.unfortunate = "its host process died", True
        except Exception as failure:  # whatever ended it, its trials must not wait for ever
            error = one_line(getattr(failure, "cause", None) or failure)
        error = pack.error or error
        ray.kill(pack.host)
        await _remove_group(name, again=pack.unfortunate)
        alone = not any(other.started for other in self.live() if other is not pack)
        matters = pack.measures or pack.held_against_a_trial or (alone and pack.held_against_the_sweep)
        gone = await _machine_is_gone(pack, wait=matters)
        pack.unfortunate = pack.unfortunate or gone
        del self.named[name]
        self.seconds += time.monotonic() - pack.up if pack.up is not None else 0.0
        if not (pack.ready or pack.stopping or gone):  # a machine that is taken away says nothing of the next one
            self._did_not_start(error, pack.late)
        self._ended(name, pack, error)

    def blamed(self, error: str) -> None:
        """A trial has made its packs die. Where none has ever taken a step, it is the base, or the machine."""
        if not self._productive:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                self._give_up(f"no trial could take a step: {error}")

    def _did_not_start(self, error: str, late: bool) -> None:
        """While others are up, one that does not come up costs a pause; where there is none, the sweep in the end."""
        if self._any_started():
            self._paused_until = time.monotonic() + timeouts.PACK_RETRY_S
            return
        self._failed_starts += START_ATTEMPTS if late else 1
        if self._failed_starts >= START_ATTEMPTS:
            self._give_up(f"no pack could be started: {error}")

    def _give_up(self, why: str) -> None:
        self.broken = why
        for pack in self.live():
            self._stop(pack)

    def _stop(self, pack: PackHandle) -> None:
        """Ask a pack to end; one that is not up yet would not hear it, so its host is ended."""
        pack.stopping, pack.since = True, time.monotonic()
        if pack.ready:
            pack.send(Stop())
        else:
            ray.kill(pack.host)

    async def _watch(self) -> None:
        """End what has waited too long or is not needed, and start what is."""
        while True:
            await asyncio.sleep(timeouts.POOL_TICK_S)
            try:
                await self._look()
            except Exception:  # the next look may go well; without any, idle packs would stay for ever
                logger.exception("a look at the packs failed")

    async def _look(self) -> None:
        now = time.monotonic()
        for pack in list(self.named.values()):
            self._enforce_limits(pack, now - pack.since)
        self._stop_surplus(now)
        await self._drain_leaving()
        self._tick()
        late = {
            name for name, pack in self.named.items() if not pack.started and now - pack.since > timeouts.PACK_LATE_S
        }
        if late:
            with contextlib.suppress(Exception):  # it is only shown
                late &= await asyncio.to_thread(cluster.pending_groups)
        self._without_room = late

    async def _drain_leaving(self) -> None:
        """Have packs on machines that are going away end now: their trials go on elsewhere where they were."""
        ready = {name for name, pack in self.named.items() if pack.ready and not pack.stopping}
        if not ready:
            return
        with contextlib.suppress(Exception):  # without a notice, the machine is lost as any other
            for name in ready & await asyncio.to_thread(cluster.leaving_groups):
                pack = self.named[name]
                pack.leaving = pack.stopping = True
                pack.since = time.monotonic()
                pack.send(Leave())

    def _enforce_limits(self, pack: PackHandle, waited: float) -> None:
        """End a pack that has waited too long for what comes next."""
        if pack.stopping:
            if waited > timeouts.PACK_STOP_S:
                ray.kill(pack.host)
        elif not pack.started and waited > self._patience:
            pack.late, pack.error = True, f"the cluster had no room for it within {self._patience:.0f} s"
            ray.kill(pack.host)
        elif pack.started and not pack.ready and waited > timeouts.PACK_LOAD_S:
            pack.error = f"it had no base within {timeouts.PACK_LOAD_S:.0f} s"
            ray.kill(pack.host)
        elif pack.ready and not pack.trials and waited > timeouts.PACK_IDLE_S and len(self.live()) > self._min:
            self._stop(pack)

    def _stop_surplus(self, now: float) -> None:
        """Stop those that still wait for a machine when others have taken their trials, the last first."""
        waiting = self._waiting()
        up = [pack for pack in self.live() if pack.started]
        unmet = (waiting or 0) - sum(pack.free for pack in up)
        for number, pack in enumerate((pack for pack in self.live() if not pack.started), start=len(up)):
            if unmet > 0 or number < self._min or waiting is None:
                pack.needed = now
            elif now - pack.needed > timeouts.PACK_SURPLUS_S:
                self._stop(pack)
            unmet -= self._slots


async def _machine_is_gone(pack: PackHandle, wait: bool) -> bool:
    """Was the pack lost with a machine of its own? Of a lost one Ray hears later than of its processes: where it matters,
    that is waited for."""
    last = time.monotonic() + (timeouts.NODE_DEATH_S if wait else 0.0)
    while pack.nodes:
        with contextlib.suppress(Exception):  # without an answer it is a loss as any other
            if pack.nodes - await asyncio.to_thread(cluster.living_nodes):
                return True
        if time.monotonic() >= last:
            break
        await asyncio.sleep(timeouts.POOL_TICK_S)
    return False


async def _remove_group(name: str, again: bool) -> None:
    """Remove a pack's placement group.

    Args:
        again: a second time, a moment later: the call that makes it may have been on its way when its host died.
    """
    for second in (False, True)[: 1 + again]:
        if second:
            await asyncio.sleep(timeouts.POOL_TICK_S)
        try:
            await asyncio.to_thread(cluster.remove_group, name)
        except Exception:  # its trials must be queued again all the same
            logger.exception("the placement group of a pack could not be removed")
