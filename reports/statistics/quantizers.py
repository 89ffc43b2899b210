"""The best of each quantizer, beside the best of all."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from bitlora.quantizers.weights import QUANTIZERS
from reports.statistics.comparable import Comparable, Row, ScoresOf, by_progress, rows
from reports.statistics.paired import Interval, paired


@dataclass(frozen=True, slots=True)
class QuantizerBest:
    """What a sweep found for one quantizer."""

    quantizer: str
    began: int
    """Trials of the search with this quantizer, however they ended."""
    full: int
    """Those of them that are ranked."""
    best: Row | None
    """Its best ranked configuration; where it has none, the trial that came furthest; None where none came anywhere."""
    gap: float | None
    """Nats per completion token above the best of all quantizers; None where `best` is not ranked."""
    interval: Interval | None
    """Of that gap; None also for the best itself."""


def quantizer_bests(
    trials: pd.DataFrame, groups: Comparable, asked: Collection[str], scores: ScoresOf = lambda row: {}
) -> tuple[QuantizerBest, ...]:
    """A line for each quantizer in `trials` or `asked` (the spec's): the ranked by eval loss, then the others."""
    column = "config.quantizer"
    known = dict.fromkeys((*QUANTIZERS, *sorted(asked), *sorted(str(name) for name in trials[column].dropna())))
    leader = rows(groups.ranked.head(1))
    begun = pd.concat([groups.other, groups.pruned[groups.pruned["eval_loss"].notna()]])
    found = []
    for name in known:
        of_all, ranked = trials[trials[column] == name], groups.ranked[groups.ranked[column] == name]
        if of_all.empty and name not in asked:
            continue
        candidates = ranked if len(ranked) else by_progress(begun[begun[column] == name])
        best = rows(candidates.head(1))[0] if len(candidates) else None
        apart, interval = None, None
        if best is not None and len(ranked):
            apart = float(best["eval_loss"] - leader[0]["eval_loss"])
            if best["trial_id"] != leader[0]["trial_id"]:
                interval = paired(scores(leader[0]), scores(best))
        full = sum(len(group) for group in ranked["trials"])
        found.append(QuantizerBest(name, len(of_all), full, best, apart, interval))
    return tuple(sorted(found, key=lambda line: math.inf if line.gap is None else line.gap))
