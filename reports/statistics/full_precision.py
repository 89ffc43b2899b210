"""What fewer bits cost: the best of each quantizer against the best in full precision, in loss and in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from reports.document.cells import missing
from reports.statistics.comparable import Row, ScoresOf, rows
from reports.statistics.paired import Interval, paired


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


def against(contest: pd.DataFrame, scores: ScoresOf) -> tuple[Against, ...]:
    """The best of each quantizer in `contest` (`Comparable.contest`): full precision, then the others, the largest first.
    Empty where there is no full precision, or nothing else, to compare."""
    bests = contest.dropna(subset=["config.quantizer"]).drop_duplicates("config.quantizer")
    in_full = bests["config.quantizer"] == "none"
    others = bests[~in_full].sort_values(["adapter_bytes", "loss"], ascending=[False, True], kind="stable")
    full = next(iter(rows(bests[in_full])), None)
    if full is None or others.empty or not full["loss"] or not math.isfinite(100 / full["loss"]):
        return ()
    own, unit = scores(full), 100 / full["loss"]
    found = [Against(full, 0.0, None, _share(full, full))]
    for row in rows(others):
        apart = paired(own, scores(row))
        scaled = apart and Interval(
            apart.difference * unit, apart.low * unit, apart.high * unit, apart.examples, apart.seeds
        )
        found.append(Against(row, unit * (row["loss"] - full["loss"]), scaled, _share(row, full)))
    return tuple(found)


def _share(row: Row, full: Row) -> float | None:
    own, whole = row["adapter_bytes"], full["adapter_bytes"]
    return None if missing(own) or missing(whole) or not whole else 100 * own / whole
