"""What the packs of a sweep have measured of memory, so that each thing is measured once: held by the pool, which alone
writes it to the sweep's folder.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cached_property
from typing import Any, Final

from bitlora import timeouts
from bitlora.files.writing import write_json

logger = logging.getLogger(__name__)
MEMORY: Final = "memory.json"
"""The file's name in the sweep's folder: what was measured, by what it is of (`sweeps.pack.memory`)."""
DIED: Final = {"lack": True, "reason": "a pack died while it measured"}
"""What is known where a pack died: that it asked for too much, as far as can be seen from here."""


class MeasuredMemory:
    """See the module. Lives on the pool's asyncio loop.

    Args:
        settings: of the packs (`sweeps.pack.settings.PackSettings`); they hold what an earlier run has measured.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._measuring: dict[str, str] = {}
        """What is being measured, and the pack that does."""
        self._lock = asyncio.Lock()

    @cached_property
    def _known(self) -> dict[str, Any]:
        return dict(self._settings.measured)

    async def ask(self, key: str, pack: str) -> dict[str, Any] | None:
        """What is known of `key`, when it is; None: `pack` is to measure it, and will `keep` what it comes to."""
        while key not in self._known:
            if self._measuring.setdefault(key, pack) == pack:
                return None
            await asyncio.sleep(timeouts.POOL_TICK_S)  # two at once would disturb each other, and both die of the same
        return self._known[key]  # type: ignore[no-any-return]

    def ended(self, pack: str, innocent: bool) -> None:
        """A pack has ended. What it was still measuring is another's to measure where its end had nothing to do with it;
        else nobody tries again in this run of the sweep."""
        for key in [key for key, by in self._measuring.items() if by == pack and key not in self._known]:
            del self._measuring[key]
            if not innocent:
                self._known[key] = DIED

    async def keep(self, key: str, found: dict[str, Any]) -> None:
        """Hold `found` of `key`, and write all that was measured. That it cannot be written costs a measurement, no trial.

        Why something could not be measured (`reason`) is held, not written: the next run of the sweep tries again.
        """
        self._known[key] = found
        measured = {name: each for name, each in self._known.items() if "reason" not in each}
        async with self._lock:
            try:
                await asyncio.to_thread(self._write, measured)
            except OSError:
                logger.exception("%s could not be written", MEMORY)

    def _write(self, known: dict[str, Any]) -> None:
        write_json(self._settings.storage.folder / MEMORY, known)
        self._settings.storage.push(MEMORY)
