"""What share of the gain of fine-tuning is kept: a configuration's gain over the base without an adapter, against that of
the best in full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from reports.inference import fieller
from reports.inference.differences import Numbers, ratio
from reports.load.baseline import BareLoss
from reports.statistics.comparable import Row, ScoresOf
from reports.statistics.paired import FEWEST, ExampleWeights, LossesBySeed, groups_in, side_of


@dataclass(frozen=True, slots=True)
class Kept:
    """A share of the gain; 1 is all that full precision gains."""

    share: float
    low: float | None = None
    """95 % interval, of each by itself (`reports.inference.fieller`); None where it is not known, and of the whole."""
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Gains:
    """The gains over the base on one split, and what shares of them may be told."""

    base: float
    """The base's own loss, in nats per completion token."""
    full: Row | None
    """The best in full precision, whose gain is the whole."""
    untold: str = ""
    """Why no share is told, in words; empty where they are."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By trial_id."""

    def kept(self, row: Row) -> Kept | None:
        """The share that this configuration, a row with its `loss` on the split, keeps; None where none is told."""
        if self.full is None or self.untold:
            return None
        share = (self.base - row["loss"]) / (self.base - self.full["loss"])
        return Kept(share, *self.intervals.get(row["trial_id"], (None, None)))


def gains(bare: BareLoss | None, full: Row | None, held: Sequence[Row], scores: ScoresOf) -> Gains | None:
    """The gains of configurations, rows with their `loss`; None where the base was not scored.

    Args:
        bare: what the base scored on the split.
        full: the best in full precision, if there is one.
        held: those that are to have an interval, of which one may be there twice.
        scores: reads a configuration's scores on the split.
    """
    if bare is None:
        return None
    if full is None:
        return Gains(bare.loss, None, "there is nothing in full precision to hold it against")
    table = next(iter(scores(full).values()), None)
    if table is None:
        return Gains(bare.loss, full, "the scores of full precision cannot be read")
    weights = ExampleWeights(table["tokens"].to_numpy(dtype=float), groups_in(table))
    alone, whole = (side_of(of, table, weights, "tokens") for of in ({0: bare.scores}, scores(full)))
    if alone is None or whole is None:
        return Gains(bare.loss, full, "the base and full precision were not scored on the same examples")
    if weights.units < FEWEST:
        return Gains(bare.loss, full, f"it takes {FEWEST} examples, or groups of them, to tell a gain from none")
    own = alone.mean([])
    apart, parts = _parts(own, whole, whole, weights)
    gain = float(ratio(apart, weights.total)[1])
    if gain <= fieller.half_width(parts):
        return Gains(bare.loss, full, "what full precision gains over the base is not clear of zero")
    intervals = {}
    for row in {row["trial_id"]: row for row in held}.values():
        side = None if row["trial_id"] == full["trial_id"] else side_of(scores(row), table, weights, "tokens")
        if side is not None:
            apart, parts = _parts(own, side, whole, weights)
            if (ends := fieller.interval(apart, weights.total, parts)) is not None:
                intervals[row["trial_id"]] = ends
    return Gains(bare.loss, full, "", intervals)


def _parts(
    own: Numbers, side: LossesBySeed, whole: LossesBySeed, weights: ExampleWeights
) -> tuple[Numbers, list[tuple[Numbers, float]]]:
    """By how much `side` and `whole` are below the base on each example, [2, n], and the covariances of that: over
    examples, and over the seeds that both have, where there are several."""
    seeds = sorted(side.losses.keys() & whole.losses.keys())
    apart = np.stack([own - each.mean(seeds) for each in (side, whole)])
    parts = [fieller.over_examples(apart, weights.total, weights.groups)]
    if len(seeds) > 1:
        parts.append(fieller.over_seeds(np.array([each.by_seed(seeds, weights) for each in (side, whole)])))
    return apart, parts
