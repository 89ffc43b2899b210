"""What fewer bits cost: the best of each quantizer against the best in full precision, in loss and in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.document.cells import missing
from reports.statistics.comparable import Row, ScoresOf
from reports.statistics.paired import Interval, together
from reports.statistics.verdict import Verdict, in_full


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


def against(found: Verdict, scores: ScoresOf) -> tuple[Against, ...]:
    """The best of each quantizer among those that `found` compares: full precision, then the others, the largest first.
    Empty where there is no full precision, or nothing else, to compare.

    All that `found` compares are judged together here too: so a gap has one interval, whichever table shows it.
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
    by_size = sorted(bests.values(), key=lambda line: (-_bytes(line.row), line.row["loss"]))
    return (Against(full, 0.0, None, _share(full, full)), *by_size)


def _bytes(row: Row) -> float:
    held = row["adapter_bytes"]
    return -math.inf if missing(held) else float(held)


def _share(row: Row, full: Row) -> float | None:
    own, whole = row["adapter_bytes"], full["adapter_bytes"]
    return None if missing(own) or missing(whole) or not whole else 100 * own / whole
