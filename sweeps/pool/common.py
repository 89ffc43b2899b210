"""What the packs of a sweep have in common: each asks the pool, and what the first came to holds for all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sweeps.pool.measured import MeasuredMemory
from sweeps.pool.messages import Peers, TrialResult
from sweeps.pool.packs import PackHandle
from sweeps.search.rungs.sequential import RowLoss


class CommonGround:
    """That side of the pool.

    Args:
        settings: what a pack's workers need (`sweeps.pack.settings.PackSettings`).
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._memory = MeasuredMemory(settings)
        self._dtype = ""
        """What packs compute in, where the spec leaves it open; empty until one has said."""
        self._base_scorer = ""
        """The pack that scores the base without an adapter; empty: none has been asked to."""
        self._peers: list[Peers] = []
        """What packs have to know of each other's trials, where they score until it is known who is stopped."""

    async def settings(self) -> Any:
        """What a worker needs to load the base and train."""
        return self._settings

    async def settle_dtype(self, name: str, dtype: str) -> str:
        """What the base computes in, for the whole sweep: what the first worker to ask would take."""
        self._dtype = self._dtype or dtype
        return self._dtype

    async def scores_base(self, name: str) -> bool:
        """Is it for this pack to score the base without an adapter? For the first to ask; and where that one goes without
        having died of it, for the next."""
        self._base_scorer = self._base_scorer or name
        return self._base_scorer == name

    async def known_memory(self, name: str, key: str) -> dict[str, Any] | None:
        """What is known of how much memory `key` takes; None: the pack is to measure it."""
        known = await self._memory.ask(key, name)
        self._measures(name, known is None)
        return known

    async def keep_memory(self, key: str, found: dict[str, Any]) -> None:
        """How much memory `key` takes, or why that could not be measured."""
        await self._memory.keep(key, found)

    def _tell_others(self, result: TrialResult, packs: Iterable[PackHandle]) -> None:
        """Whom their trials are held against, row by row."""
        own = result.wave.get(result.trial_id)
        if own is None or not isinstance(own[1], RowLoss):
            return
        self._peers.append(Peers({result.trial_id: own}))
        for pack in packs:
            pack.send(self._peers[-1])

    def _introduce(self, pack: PackHandle) -> None:
        """A pack is ready: tell it what came before."""
        for peers in self._peers:
            pack.send(peers)

    def _pack_gone(self, name: str, innocent: bool, stopping: bool) -> None:
        """What this pack was to find out is for another."""
        self._memory.ended(name, innocent)
        if self._base_scorer == name and (innocent or stopping):
            self._base_scorer = ""

    def _measures(self, name: str, measures: bool) -> None:
        """Whether this pack measures its memory."""
        raise NotImplementedError
