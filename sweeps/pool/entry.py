"""A trial, as the pool sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sweeps.pool.messages import StepProgress
from sweeps.pool.suspicion import Suspicion
from sweeps.search.cloning.place import Source


@dataclass(slots=True)
class Entry:
    """A trial, as the pool sees it."""

    config: dict[str, Any]
    count: int = 0
    """Results it has had."""
    reported: int = 0
    """The last step it has reported; until a trial that goes on is past it, it is silent."""
    resumes: bool = False
    """It was in a pack before, of this run of the sweep or of an earlier one, so there may be a checkpoint."""
    source: Source | None = None
    """What it begins as a copy of."""
    until: int | None = None
    """The step at which it leaves its slot, to wait for `sweeps.pool.pool.Pool.go_on`."""
    ended: bool = False
    pack: str | None = None
    suspicion: Suspicion = field(default_factory=Suspicion)
    """Whether it makes its packs die."""
    furthest: int = 0
    """The last step that it is known to have taken, in any pack."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    progress: StepProgress | None = None
    """In the pack where it is."""
    stopping: str = ""
    """Why it ends at its first evaluation, where a person wants that."""
    extending: asyncio.Future[bool] | None = None
    """Answered when it is known whether the trial has heard that it has more steps."""

    def settle(self, extended: bool) -> None:
        """It is known now, if anybody waits for it."""
        if self.extending is not None and not self.extending.done():
            self.extending.set_result(extended)
