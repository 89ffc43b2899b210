"""The best of each quantizer, beside the best of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports.statistics.comparable import Comparable, Row, by_progress, rows
from reports.statistics.paired import Interval
from reports.statistics.verdict import Verdict


@dataclass(frozen=True, slots=True)
class QuantizerBest:
    """What a sweep found for one quantizer."""

    quantizer: str
    began: int
    """Trials of the search with this quantizer that were trained, however they ended."""
    full: int
    """Those of them that are ranked."""
    best: Row | None
    """Its best ranked configuration; where it has none, the trial that came furthest; None where none came anywhere."""
    gap: float | None
    """Nats per completion token above the best of all quantizers; None where `best` is not ranked."""
    interval: Interval | None
    """Of that gap; None also for the best itself."""


def quantizer_bests(
    trials: pd.DataFrame, groups: Comparable, asked: Sequence[str], search: Verdict
) -> tuple[QuantizerBest, ...]:
    """A line for each quantizer `asked` (`Findings.asked`): the ranked by eval loss, then the others in this order.

    `search`: the verdict on the search, whose intervals these are.
    """
    column = "config.quantizer"
    leader = rows(groups.ranked.head(1))
    begun = pd.concat([groups.other, groups.pruned[groups.pruned["eval_loss"].notna()]])
    found = []
    for name in asked:
        of_all, ranked = trials[trials[column] == name], groups.ranked[groups.ranked[column] == name]
        candidates = ranked if len(ranked) else by_progress(begun[begun[column] == name])
        best = rows(candidates.head(1))[0] if len(candidates) else None
        at_full = best is not None and len(ranked) > 0
        apart = float(best["eval_loss"] - leader[0]["eval_loss"]) if best and at_full else None
        interval = search.interval(best) if best and at_full else None
        full = sum(len(group) for group in ranked["trials"])
        found.append(QuantizerBest(name, len(of_all), full, best, apart, interval))
    return tuple(sorted(found, key=lambda line: math.inf if line.gap is None else line.gap))
