"""Two configurations over the same examples, and over the same seeds where there are several: how far apart they are, and
how sure that is.

A loss is a ratio, the summed loss of all examples over their tokens. Both sides score the same examples with the same
tokens, so their difference is one ratio too, R = sum(d) / sum(t), where d is the difference of an example's summed losses
(their mean over the seeds) and t its tokens. Its variance over examples is that of a ratio estimator, from the residuals
d - R t (Cochran, Sampling Techniques, 3rd ed., section 6.3). With seeds in common, each gives an R of its own, and the
variance of their mean is added: examples and seeds are crossed, and the sum is never below the variance of R (Owen and
Eckles, arXiv 1106.2125, section 3: what both share is counted twice). The interval is Student's t, with Satterthwaite's
degrees of freedom for the sum of the two. With one seed it speaks of other examples of the same kind alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

CONFIDENCE: Final = 0.95
FEWEST: Final = 5
"""Examples in common, below which there is no interval."""

Numbers = npt.NDArray[np.float64]
Scores = Mapping[int, pd.DataFrame]
"""Seed -> the scores of that trial: `example_id`, `loss` in nats summed over the example, `tokens`."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The difference of two losses, second minus first, in nats per completion token (or in bits per byte)."""

    difference: float
    low: float
    high: float
    examples: int
    seeds: int
    """Seeds that it is over; 1: it says nothing of another seed."""

    @property
    def decided(self) -> bool:
        """The interval does not hold zero: one of the two is better on such examples (and seeds)."""
        return not self.low <= 0 <= self.high


def paired(first: Scores, second: Scores, per: str = "tokens") -> Interval | None:
    """Compare two configurations example by example.

    Args:
        first, second: the scores of each, by seed; without a seed in common each is taken as its mean over its seeds.
        per: the column that the summed losses are divided by.

    Returns:
        None where they did not score the same examples, or too few.
    """
    seeds = sorted(first.keys() & second.keys())
    sides = [[side[seed] for seed in seeds or sorted(side)] for side in (first, second)]
    if not all(sides):
        return None
    ids = sides[0][0]["example_id"]
    aligned = [[_aligned(table, ids, per) for table in side] for side in sides]
    known = [found for side in aligned for found in side if found is not None]
    weights = known[0][1] if known else np.empty(0)
    same = len(known) == sum(map(len, sides)) and all(np.array_equal(weights, own) for _, own in known)
    if not same or len(weights) < FEWEST:
        return None
    from scipy import stats

    one, other = (np.array([found[0] for found in side if found is not None]) for side in aligned)  # (seeds, examples)
    n, k, total = len(weights), len(seeds), float(weights.sum())
    apart = other.mean(axis=0) - one.mean(axis=0)
    difference = float(apart.sum()) / total
    residuals = apart - difference * weights
    variances = [(n / (n - 1) * float((residuals**2).sum()) / total**2, n - 1)]
    if k > 1:
        by_seed = (other - one).sum(axis=1) / total
        variances.append((float(by_seed.var(ddof=1)) / k, k - 1))
    variance = sum(part for part, _ in variances)
    squares = sum(part**2 / freedom for part, freedom in variances)
    freedom = variance**2 / squares if squares else n - 1
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    if not math.isfinite(difference + reach):
        return None
    return Interval(difference, difference - reach, difference + reach, n, max(1, k))


def standard_error(table: pd.DataFrame) -> float:
    """Of one trial's loss, over its examples: that of a ratio estimator, in nats per token; NaN for a single example."""
    tokens, losses = table["tokens"].to_numpy(dtype=float), table["loss"].to_numpy(dtype=float)
    n = len(table)
    residuals = losses - losses.sum() / tokens.sum() * tokens
    return math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(tokens.sum()) if n > 1 else math.nan


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
