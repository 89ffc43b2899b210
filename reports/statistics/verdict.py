"""What won, by how much, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pandas as pd

from reports.statistics.comparable import Row, ScoresOf, rows
from reports.statistics.paired import Interval, paired

RIVALS: Final = 9
"""Configurations that the best has to beat where all have one quantizer."""


@dataclass(frozen=True, slots=True)
class Rival:
    """One that the best is compared with."""

    row: Row
    gap: float
    """Nats per completion token that it is above the best."""
    percent: float | None
    """The gap in per cent of its own loss; None where that is 0."""
    interval: Interval | None
    """Of the gap, over the examples (and seeds) of both; None where they cannot be paired."""

    @property
    def tied(self) -> bool:
        """The interval holds zero: on other examples of the kind, either could be ahead."""
        return self.interval is not None and not self.interval.decided


@dataclass(frozen=True, slots=True)
class Verdict:
    """What won and by how much: it has, where no rival is tied with it."""

    best: tuple[Row, ...]
    """The configurations with the lowest loss: none, one, or several that tie to the last bit."""
    rivals: tuple[Rival, ...]
    """The best of each other quantizer; with one quantizer alone the next `RIVALS` configurations."""
    across: bool
    """Whether the rivals have other quantizers."""

    @property
    def tied(self) -> tuple[Rival, ...]:
        """Those that the best does not beat for sure."""
        return tuple(rival for rival in self.rivals if rival.tied)


def verdict(contest: pd.DataFrame, scores: ScoresOf = lambda row: {}) -> Verdict:
    """What won in `contest` (`Comparable.contest`)."""
    best = contest[contest["place"] == 1]
    others = contest[~contest["config.quantizer"].isin(best["config.quantizer"])]
    across = not others.empty
    others = others.drop_duplicates("config.quantizer") if across else contest[contest["place"] > 1].head(RIVALS)
    rivals = []
    first = next(iter(rows(best)), {})
    own = scores(first) if len(others) else {}
    for row in rows(others):
        percent = 100 * (row["loss"] - first["loss"]) / row["loss"] if row["loss"] else None
        rivals.append(Rival(row, float(row["loss"] - first["loss"]), percent, paired(own, scores(row))))
    return Verdict(rows(best), tuple(rivals), across)
