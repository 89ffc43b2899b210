"""Configurations over the same examples, and over the same seeds where there are several: how far each is from one of them,
and how sure that is.

The statistics are those of `reports.inference`: all that are compared at once are judged together, so that an interval that
excludes zero is no accident of how many there are. With one seed they speak of other examples of the same kind alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from reports.inference.differences import Codes, Numbers, over_examples, over_seeds, ratio
from reports.inference.steps import reach, step_down

FEWEST: Final = 30
"""Examples in common, or groups of them, below which there is no interval: fewer do not average to a normal."""

Scores = Mapping[int, pd.DataFrame]
"""Seed -> the scores of that trial: `example_id`, `loss` in nats summed over the example, `tokens`; and `group` where
examples belong together."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The difference of two losses, second minus first, in nats per completion token (or in bits per byte)."""

    difference: float
    low: float
    high: float
    examples: int
    seeds: int
    """Seeds that it is over; 1: it says nothing of another seed."""
    groups: int | None = None
    """Groups that the examples fall into; None: each is its own."""
    pooled: int = 0
    """Configurations that the seeds' variance is pooled over; 0: none had several seeds in common."""

    @property
    def decided(self) -> bool:
        """The interval does not hold zero: one of the two is better on such examples (and seeds)."""
        return not self.low <= 0 <= self.high

    @property
    def behind(self) -> bool:
        """The second is the worse one for sure."""
        return self.low > 0

    def scaled(self, unit: float) -> Interval:
        """The same in another unit."""
        return replace(self, difference=self.difference * unit, low=self.low * unit, high=self.high * unit)


@dataclass(frozen=True, slots=True)
class LossesBySeed:
    """A configuration's summed losses in the order of the examples that all share: [examples] by seed."""

    losses: dict[int, Numbers]

    def mean(self, seeds: Sequence[int]) -> Numbers:
        """Over these seeds; over all that it has where there are none."""
        return np.asarray(np.mean([self.losses[seed] for seed in seeds or sorted(self.losses)], axis=0))

    def by_seed(self, seeds: Sequence[int], weights: ExampleWeights) -> list[float]:
        """Its loss on each of these seeds."""
        return [float(self.losses[seed].sum() / weights.total.sum()) for seed in seeds]


@dataclass(frozen=True, slots=True)
class ExampleWeights:
    """What losses are divided by, and what belongs together: both [examples]."""

    total: Numbers
    groups: Codes | None

    @property
    def units(self) -> int:
        """What is drawn at random: groups, or examples."""
        return len(self.total) if self.groups is None else len(np.unique(self.groups))


def paired(first: Scores, second: Scores, per: str = "tokens") -> Interval | None:
    """Compare two configurations example by example: `together` of two."""
    return together(first, [second], per)[0]


def together(first: Scores, others: Sequence[Scores], per: str = "tokens") -> list[Interval | None]:
    """Compare `others` with `first`, example by example and all at once.

    Where `first` has the lowest loss of all, those whose interval holds zero, and itself, may be the best: with 95 % none
    that is truly best is missing (`reports.inference.steps`).

    Args:
        first, others: the scores of each, by seed; two without a seed in common are taken as their means over their seeds.
        per: the column that the summed losses are divided by.

    Returns:
        For each of `others` its interval; None where it did not score the same examples, or too few.
    """
    table = next(iter(first.values()), None)
    if table is None or per not in table:
        return [None] * len(others)
    weights = ExampleWeights(table[per].to_numpy(dtype=float), groups_in(table))
    one, *sides = (side_of(scores, table, weights, per) for scores in (first, *others))
    if one is None or weights.units < FEWEST:
        return [None] * len(others)
    known = [one, *(side for side in sides if side is not None)]
    pool = seeds_in_common(known)
    differences = np.full(len(sides), np.nan)
    variances, freedoms = np.zeros((2, len(sides))), np.ones((2, len(sides)))
    common = [sorted(one.losses.keys() & side.losses.keys()) if side else [] for side in sides]
    for at, (side, seeds) in enumerate(zip(sides, common, strict=True)):
        if side is None:
            continue
        apart = side.mean(seeds) - one.mean(seeds)
        differences[at] = ratio(apart, weights.total)
        variances[0, at], freedoms[0, at] = over_examples(apart, weights.total, weights.groups)
        if len(seeds) > 1:
            over, of = pool or (seeds, [one, side])
            variance, freedoms[1, at] = over_seeds(np.array([each.by_seed(over, weights) for each in of]))
            variances[1, at] = variance / len(seeds)
    parts = list(zip(variances, freedoms, strict=True))
    _, errors = step_down(differences, parts)
    found: list[Interval | None] = []
    for apart, wide, seeds in zip(differences.tolist(), reach(parts, errors).tolist(), common, strict=True):
        pooled = len(pool[1]) if pool else 2
        groups = None if weights.groups is None else weights.units
        k, over_all = max(1, len(seeds)), len(weights.total)
        interval = Interval(apart, apart - wide, apart + wide, over_all, k, groups, pooled if k > 1 else 0)
        found.append(interval if math.isfinite(apart + wide) else None)
    return found


def standard_error(table: pd.DataFrame) -> float:
    """Of one trial's loss, over its examples: that of a ratio estimator, in nats per token; NaN for a single example."""
    weights = table["tokens"].to_numpy(dtype=float)
    variance, _ = over_examples(table["loss"].to_numpy(dtype=float), weights, groups_in(table))
    return math.sqrt(variance)


def seeds_in_common(sides: Sequence[LossesBySeed]) -> tuple[list[int], list[LossesBySeed]] | None:
    """The seeds that all with several have in common, and these configurations; None where they are too few."""
    several = [side for side in sides if len(side.losses) > 1]
    seeds = sorted(set.intersection(*(set(side.losses) for side in several))) if len(several) > 1 else []
    return (seeds, several) if len(seeds) > 1 else None


def side_of(scores: Scores, first: pd.DataFrame, weights: ExampleWeights, per: str) -> LossesBySeed | None:
    """None where one of its tables is not of the examples of `first`, with the same weights."""
    losses = {}
    for seed, table in scores.items():
        found = _aligned(table, first["example_id"], per)
        if found is None or not np.array_equal(found[1], weights.total):
            return None
        losses[seed] = found[0]
    return LossesBySeed(losses) if losses else None


def groups_in(table: pd.DataFrame) -> Codes | None:
    """The group of each example, as a number; one without is its own. None where each is its own."""
    if "group" not in table or not table["group"].dropna().duplicated().any():
        return None
    codes, names = pd.factorize(table["group"])
    codes[codes < 0] = len(names) + np.arange(int((codes < 0).sum()))
    return np.asarray(codes, dtype=np.int64)


def _aligned(table: pd.DataFrame, ids: pd.Series[str], per: str) -> tuple[Numbers, Numbers] | None:
    """Summed losses and weights in the order of `ids`; None where the table is not of these examples."""
    if per not in table or len(table) != len(ids):
        return None
    if not table["example_id"].equals(ids):
        indexed = table.set_index("example_id")
        if not indexed.index.is_unique or not ids.isin(indexed.index).all():
            return None
        table = indexed.reindex(ids)
    return table["loss"].to_numpy(dtype=float), table[per].to_numpy(dtype=float)
