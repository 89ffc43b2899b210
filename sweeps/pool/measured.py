"""What the packs of a sweep have measured of memory, so that each thing is measured once: held by the pool, which alone
writes it to the sweep's folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from bitlora import timeouts
from bitlora.files.writing import write_json

if TYPE_CHECKING:
    from bitlora.files.storage import Storage

logger = logging.getLogger(__name__)
MEMORY: Final = "memory.json"
"""The file's name in the sweep's folder: what was measured, by what it is of (`sweeps.pack.memory`)."""
DIED: Final = {"lack": True, "reason": "a pack died while it measured"}
"""What is known where a pack died: that it asked for too much, as far as can be seen from here."""


class MeasuredMemory:
    """See the module. Lives on the pool's asyncio loop.

    Args:
        known: what an earlier run of the sweep has measured.
    """

    def __init__(self, storage: Storage, known: dict[str, Any]) -> None:
        self._storage = storage
        self._known = dict(known)
        self._measuring: dict[str, str] = {}
        """What is being measured, and the pack that does."""
        self._lock = asyncio.Lock()

    async def ask(self, key: str, pack: str, living: Collection[str]) -> dict[str, Any] | None:
        """What is known of `key`, when it is; None: `pack` is to measure it, and will `keep` what it comes to.

        Args:
            living: the names of the packs that have not ended, kept up to date.
        """
        while key not in self._known:
            measuring = self._measuring.setdefault(key, pack)
            if measuring == pack:
                return None
            if measuring not in living:
                self._known[key] = DIED
            else:  # two at once would disturb each other, and both die of the same
                await asyncio.sleep(timeouts.POOL_TICK_S)
        return self._known[key]  # type: ignore[no-any-return]

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
        write_json(self._storage.folder / MEMORY, known)
        self._storage.push(MEMORY)
