"""What won, by how much, and how sure that is. Quantizers win; a configuration is the best that was found of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pandas as pd

from reports.statistics.comparable import Row, ScoresOf, rows
from reports.statistics.paired import Interval, together

RIVALS: Final = 9
"""Configurations that the best has to beat where all have one quantizer."""

Outcome = Literal["nothing", "exact", "only", "lowest", "tied", "ahead", "won"]


@dataclass(frozen=True, slots=True)
class Rival:
    """One that the best is compared with."""

    row: Row
    gap: float
    """Nats per completion token that it is above the best."""
    interval: Interval | None
    """Of the gap, over the examples (and seeds) of both; None where they cannot be paired."""

    @property
    def tied(self) -> bool:
        """It may be the best as well: the interval is not above zero."""
        return self.interval is not None and not self.interval.behind


@dataclass(frozen=True, slots=True)
class Verdict:
    """What won and by how much."""

    best: tuple[Row, ...]
    """The configurations with the lowest loss: none, one, or several that tie to the last bit."""
    rivals: tuple[Rival, ...]
    """Those that it is held against, all at once, by loss: every confirmed configuration; without these the best of each
    other quantizer, and with one quantizer alone the next `RIVALS` configurations."""
    across: bool
    """Whether any of them has another quantizer: then quantizers are what is compared."""
    base: Row | None
    """The best in full precision among them, of whose loss gaps are given in per cent; else the best of all."""

    @property
    def decisive(self) -> tuple[Rival, ...]:
        """Those that the best has to beat: rivals with another quantizer, where there are any."""
        own = {row["config.quantizer"] for row in self.best}
        return tuple(rival for rival in self.rivals if not self.across or rival.row["config.quantizer"] not in own)

    @property
    def tied(self) -> tuple[Rival, ...]:
        """Those of them that it does not beat for sure."""
        return tuple(rival for rival in self.decisive if rival.tied)

    @property
    def outcome(self) -> Outcome:
        """What may be said: `won` over several seeds alone; `ahead`: on this seed; `lowest`: not every rival can be paired
        with the best; `tied`: several may be the best."""
        if not self.best:
            return "nothing"
        if len(self.best) > 1:
            return "exact"
        if not self.decisive:
            return "only"
        if self.tied:
            return "tied"
        intervals = [rival.interval for rival in self.decisive]
        if None in intervals:
            return "lowest"
        return "won" if all(interval and interval.seeds > 1 for interval in intervals) else "ahead"

    @property
    def held(self) -> tuple[Row, ...]:
        """All that are compared, by their loss."""
        return (*self.best, *(rival.row for rival in self.rivals))

    @property
    def quantizers(self) -> tuple[str, ...]:
        """Those that are compared, by their best loss."""
        return tuple(dict.fromkeys(str(row["config.quantizer"]) for row in self.held))

    def interval(self, row: Row) -> Interval | None:
        """That of the gap of this configuration; None also for one that is not compared."""
        return next((each.interval for each in self.rivals if each.row["trial_id"] == row["trial_id"]), None)

    def percent(self, nats: float) -> float | None:
        """A gap in per cent of the loss of `base`."""
        return 100 * nats / self.base["loss"] if self.base and self.base["loss"] else None


def verdict(contest: pd.DataFrame, scores: ScoresOf = lambda row: {}, confirmed: bool = False) -> Verdict:
    """What won in `contest` (`Comparable.contest`); `confirmed`: whether these are confirmed configurations."""
    best = contest[contest["place"] == 1]
    behind = contest[contest["place"] > 1]
    others = contest[~contest["config.quantizer"].isin(best["config.quantizer"])]
    across = not others.empty
    if not confirmed:
        behind = others.drop_duplicates("config.quantizer") if across else behind.head(RIVALS)
    lead, against = rows(best), rows(behind)
    intervals = together(scores(lead[0]), [scores(row) for row in against]) if against else []
    rivals = [
        Rival(row, float(row["loss"] - lead[0]["loss"]), interval)
        for row, interval in zip(against, intervals, strict=True)
    ]
    return Verdict(lead, tuple(rivals), across, in_full([*lead, *against]) or next(iter(lead), None))


def in_full(found: Sequence[Row]) -> dict[str, Any] | None:
    """The first of these configurations that is in full precision."""
    return next((row for row in found if row["config.quantizer"] == "none"), None)
