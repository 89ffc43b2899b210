"""How a pack scores the eval split: all rows at once, or at a rung block by block until it is known who is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitlora.engine.batch import Batch
from bitlora.engine.engine import EvalResult
from sweeps.search.rungs.sequential import RowLoss, Rungs, scoring_order

if TYPE_CHECKING:
    from bitlora.data.rows import Rows
    from bitlora.engine.engine import Engine
    from sweeps.search.rules import Wave


@dataclass(frozen=True, slots=True)
class Judged:
    """A trial that is evaluated at a step where it may be stopped."""

    trial_id: str
    step: int


class Scoring:
    """The eval split, and who is scored on how much of it.

    Args:
        rungs: by which it is known who is stopped; None: everybody is scored on all rows, at once.
    """

    def __init__(self, engine: Engine, rows: Rows, rungs: Rungs | None) -> None:
        self._engine, self._rungs = engine, rungs
        self._order = np.arange(len(rows)) if rungs is None else scoring_order(len(rows))
        self._batch = Batch.of(rows if rungs is None else rows.take(self._order))

    def judged(self, trial_id: str, step: int) -> Judged | None:
        """What is judged of a trial at this step; None: nothing that other rows could spare."""
        return Judged(trial_id, step) if self._rungs is not None and self._rungs.judges(trial_id, step) else None

    def heard(self, wave: Wave) -> None:
        """These were evaluated, here or in another pack."""
        if self._rungs is not None:
            self._rungs.heard(wave)

    def evaluate(self, slots: Mapping[int, Judged | None], hits: bool = False) -> dict[int, EvalResult]:
        """Score these slots, those that are judged on as many rows as it takes.

        Args:
            hits: count, too, how many tokens are the likeliest; where all rows are scored.

        Returns:
            For each slot its losses in the order of the eval split.
        """
        if self._rungs is None:
            return self._engine.evaluate([*slots], self._batch, hits=hits)
        found: dict[int, list[EvalResult]] = {slot: [] for slot in slots}
        going_on = list(slots)
        for part in self._rungs.blocks:
            for slot, result in self._engine.evaluate(going_on, self._batch, part).items():
                found[slot].append(result)
            if part.stop < len(self._order):
                over = self._over(slots, found)
                going_on = [slot for slot in going_on if slot not in over]
            if not going_on:
                break
        return {slot: self._in_order(parts) for slot, parts in found.items()}

    def _over(self, slots: Mapping[int, Judged | None], found: Mapping[int, list[EvalResult]]) -> set[int]:
        """Those that need no more rows. All workers take the first one's word: arithmetic may differ in its last bit."""
        assert self._rungs is not None
        failed = {slot for slot, parts in found.items() if parts[-1].failed}
        wave = {
            judged.trial_id: (judged.step, np.array([loss for part in found[slot] for loss in part.losses]))
            for slot, judged in slots.items()
            if judged is not None and slot not in failed
        }
        lost = self._rungs.lost(wave)
        over = failed | {slot for slot, judged in slots.items() if judged is not None and judged.trial_id in lost}
        return set(self._engine.workers.broadcast(over))

    def _in_order(self, parts: list[EvalResult]) -> EvalResult:
        losses = [loss for part in parts for loss in part.losses]
        tokens = [count for part in parts for count in part.tokens]
        rows = self._order[: len(losses)]
        places = np.argsort(rows).tolist()
        which = None if len(losses) == len(self._order) else sorted(rows.tolist())
        return EvalResult([losses[at] for at in places], [tokens[at] for at in places], parts[-1].failed, which)

    def by_rows(self, result: EvalResult) -> RowLoss:
        """What a slot came to that was judged, with its losses in the order of scoring."""
        known = dict(zip(range(len(self._order)) if result.rows is None else result.rows, result.losses, strict=True))
        return RowLoss(result.loss, tuple(known[row] for row in self._order[: len(known)].tolist()))
