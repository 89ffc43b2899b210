"""What fewer bits cost: the best of each quantizer against the best in full precision, in loss and in bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from reports.document.cells import missing
from reports.inference.differences import Numbers, over_seeds, ratio
from reports.inference.noninferiority import TAIL, above, bound, parts_at, smallest
from reports.load.baseline import BareLoss
from reports.statistics.comparable import Row, ScoresOf
from reports.statistics.paired import (
    FEWEST,
    ExampleWeights,
    Interval,
    LossesBySeed,
    groups_in,
    seeds_in_common,
    side_of,
    together,
)
from reports.statistics.verdict import Verdict, in_full


@dataclass(frozen=True, slots=True)
class Margin:
    """By how much a loss may be above full precision's and count as no worse."""

    share: float
    of: Literal["loss", "gain"]
    """Of its loss, or of its gain over the base."""


@dataclass(frozen=True, slots=True)
class Within:
    """Whether a loss is shown to be above full precision's by less than the margin."""

    shown: bool
    bound: float | None
    """What it is above at most, with 95 %, as a share of what the margin is of; None: it may be all of that, or more."""
    smallest: float
    """The smallest margin that would have been shown in four of five cases if the two were truly equal, as such a share."""


@dataclass(frozen=True, slots=True)
class Against:
    """The best configuration of one quantizer, held against the best in full precision."""

    row: Row
    percent: float
    """How far its loss is above, in per cent of full precision's; below zero it is the better one."""
    interval: Interval | None
    """95 % interval of that, in per cent too; None where they cannot be paired, and for full precision itself."""
    share: float | None
    """Its bytes as packed, in per cent of full precision's."""
    within: Within | None = None
    """None where no margin was asked for, it cannot be told, and for full precision itself."""


def against(
    found: Verdict, scores: ScoresOf, margin: Margin | None = None, bare: BareLoss | None = None
) -> tuple[Against, ...]:
    """The best of each quantizer among those that `found` compares: full precision, then the others, the largest first.
    Empty where there is no full precision, or nothing else, to compare.

    All that `found` compares are judged together here too: so a gap has one interval, whichever table shows it.

    Args:
        scores: reads a configuration's scores on the split.
        margin: what may be lost; each quantizer is held to it by itself.
        bare: what the base scored on the split without an adapter, where that is known.
    """
    held = found.held
    full = in_full(held)
    if full is None or not found.across or not full["loss"] or not math.isfinite(100 / full["loss"]):
        return ()
    unit = 100 / full["loss"]
    others = [row for row in held if row["trial_id"] != full["trial_id"]]
    intervals = together(scores(full), [scores(row) for row in others])
    bests: dict[str, Against] = {}
    for row, interval in zip(others, intervals, strict=True):
        apart = unit * (row["loss"] - full["loss"])
        line = Against(row, apart, interval and interval.scaled(unit), _share(row, full))
        if row["config.quantizer"] != "none":
            bests.setdefault(str(row["config.quantizer"]), line)
    if margin is not None:
        count = Counter(row["config.quantizer"] for row in others)
        found_within = _within(full, [line.row for line in bests.values()], count, scores, margin, bare)
        bests = {name: replace(line, within=one) for (name, line), one in zip(bests.items(), found_within, strict=True)}
    by_size = sorted(bests.values(), key=lambda line: (-_bytes(line.row), line.row["loss"]))
    return (Against(full, 0.0, None, _share(full, full)), *by_size)


def _within(
    full: Row, held: Sequence[Row], count: Counter[str], scores: ScoresOf, margin: Margin, bare: BareLoss | None
) -> list[Within | None]:
    """Of each configuration whether it keeps the margin; `count`: of how many with its quantizer it is the best, so that it
    was picked by the same scores."""
    table = next(iter(scores(full).values()), None)
    if table is None or (margin.of == "gain" and bare is None):
        return [None] * len(held)
    weights = ExampleWeights(table["tokens"].to_numpy(dtype=float), groups_in(table))
    sides = [side_of(each, table, weights, "tokens") for each in (scores(full), *map(scores, held))]
    one = sides[0]
    own = side_of({0: bare.scores}, table, weights, "tokens") if bare is not None else None
    if one is None or weights.units < FEWEST or (margin.of == "gain" and own is None):
        return [None] * len(held)
    pool = seeds_in_common([side for side in sides if side is not None])
    found: list[Within | None] = []
    for row, side in zip(held, sides[1:], strict=True):
        if side is None:
            found.append(None)
            continue
        seeds = sorted(one.losses.keys() & side.losses.keys())
        other = one.mean(seeds)
        amount = other if margin.of == "loss" or own is None else own.mean([]) - other
        apart = side.mean(seeds) - other
        by_seed = _by_seed(one, side, seeds, pool, weights)
        # The best of several was picked by what it is judged on.
        tail = TAIL / count[row["config.quantizer"]]
        parts = parts_at(margin.share, apart, amount, weights.total, weights.groups, by_seed)
        over = float(above(margin.share, apart, amount, weights.total, parts, tail))
        whole = float(ratio(amount, weights.total))
        if not math.isfinite(over) or whole <= 0:
            found.append(None)
            continue
        most = bound(apart, amount, weights.total, weights.groups, by_seed, tail)
        found.append(Within(over < 0, most, smallest(parts, whole, tail)))
    return found


def _by_seed(
    one: LossesBySeed,
    side: LossesBySeed,
    seeds: Sequence[int],
    pool: tuple[list[int], list[LossesBySeed]] | None,
    weights: ExampleWeights,
) -> tuple[Numbers, Numbers, float] | None:
    """The variances over seeds of a difference, pooled, and of full precision's own loss, both of means over `seeds`."""
    if len(seeds) < 2:
        return None
    over, of = pool or (list(seeds), [one, side])
    variance, freedom = over_seeds(np.array([each.by_seed(over, weights) for each in of]))
    alone = np.var(one.by_seed(seeds, weights), ddof=1)
    return np.asarray(variance / len(seeds)), np.asarray(alone / len(seeds)), float(freedom)


def _bytes(row: Row) -> float:
    held = row["adapter_bytes"]
    return -math.inf if missing(held) else float(held)


def _share(row: Row, full: Row) -> float | None:
    own, whole = row["adapter_bytes"], full["adapter_bytes"]
    return None if missing(own) or missing(whole) or not whole else 100 * own / whole
