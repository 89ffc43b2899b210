"""The pool as a person steers it: trials that are to end, and trials that are to go on for longer."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from bitlora.files.record import Status
from sweeps.pool.entry import Entry
from sweeps.pool.messages import Extend
from sweeps.pool.packs import Packs


class Steerable:
    """What of `sweeps.pool.pool.Pool` a person's steering asks for."""

    _trials: dict[str, Entry]
    _packs: Packs

    def _end(self, trial_id: str, status: Status, reason: str) -> None:
        raise NotImplementedError

    def _dispatch(self) -> None:
        raise NotImplementedError

    async def stop(self, trial_id: str, reason: str) -> tuple[Literal["stopped", "later", "ended", "unknown"], int]:
        """End a trial at its last evaluation; one that has none ends at its first.

        Returns:
            What became of that, and the step.
        """
        entry = self._trials.get(trial_id)
        if entry is None:
            return "unknown", 0
        if entry.ended:
            return "ended", max(0, entry.reported)
        if entry.count == 0 and entry.reported <= 0:
            entry.stopping = reason
            return "later", min(entry.config["eval_every"], entry.config["steps"])
        self._end(trial_id, "pruned", f"{reason} at step {entry.reported}")
        self._dispatch()
        return "stopped", entry.reported

    def _stop_if_asked(self, trial_id: str, entry: Entry) -> None:
        """A trial has been evaluated: one that was to end there does."""
        if entry.stopping and not entry.ended:
            self._end(trial_id, "pruned", f"{entry.stopping} at step {entry.reported}")

    async def extend(self, trial_id: str, config: dict[str, Any]) -> bool:
        """Let a trial go on for longer: `config` is the same up to the budget that it had. Returns when it is known whether
        it heard of that before it had taken its last step."""
        entry = self._trials.get(trial_id)
        if entry is None or entry.ended:
            return False
        entry.config = config
        if (pack := self._packs.named.get(entry.pack or "")) is None:
            return True
        entry.settle(True)
        entry.extending = asyncio.get_running_loop().create_future()
        pack.send(Extend(trial_id, config))
        return await entry.extending

    async def extended(self, name: str, trial_id: str) -> None:
        """The pack has told the trial of its new budget."""
        if (entry := self._trials.get(trial_id)) is not None and entry.pack == name:
            entry.settle(True)
