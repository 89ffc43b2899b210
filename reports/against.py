"""What fewer bits cost: the best of each quantizer against the best in full precision, in loss and in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from reports import plot_gaps
from reports.cells import bits, cell, missing, size
from reports.document import NOTHING, Column, Figure, Table, plain
from reports.figures import Plot
from reports.paired import Interval, paired
from reports.stats import Row, ScoresOf, rows
from reports.tables import between, loss_cell


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
    """The best of each quantizer in `contest` (`reports.stats.Comparable.contest`): full precision, then the others, the
    largest first. Empty where there is no full precision, or nothing else, to compare."""
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


def against_table(found: Sequence[Against], on: str) -> Table:
    """Full precision and the others, line by line; `on`: what the loss is called."""
    lines = []
    for each in found:
        row, spent = each.row, bits(each.row)
        lines.append(
            (
                cell(plain(row["config.quantizer"], 60)),
                cell(plain(row["name"], 60)),
                cell(NOTHING if spent is None else f"{spent:.2f}", spent),
                cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
                cell(NOTHING if each.share is None else f"{each.share:.2f}", each.share),
                loss_cell(row, "loss"),
                cell(f"{each.percent:z.2f}", each.percent),
                between(each.interval, 2),
            )
        )
    columns = (
        *(Column("quantizer"), Column("best trial"), Column("bits per parameter", True), Column("packed size", True)),
        *(Column("size, %", True), Column(f"{on} loss", True), Column("gap, %", True)),
        Column("95 % interval of the gap, %", True),
    )
    return Table("full-precision", columns, tuple(lines))


def against_plot(found: Sequence[Against]) -> Plot | None:
    """The gap in per cent against the adapter's bytes, with intervals."""
    nan = float("nan")
    data = pd.DataFrame(
        [
            {
                "label": plain(each.row["name"], 30),
                "quantizer": str(each.row["config.quantizer"]),
                "adapter_bytes": each.row["adapter_bytes"],
                "percent": each.percent,
                "low": each.interval.low if each.interval else nan,
                "high": each.interval.high if each.interval else nan,
            }
            for each in found
            if each.share is not None
        ]
    )
    if len(data) < 2:
        return None
    caption = (
        "The same over the adapter's size as packed. Hollow: tied, the interval holds zero; below the line: better than"
        " full precision. Adapters of one size stand side by side."
    )
    alt = "Gap of each quantizer's best to full precision, in per cent, against the bytes of its adapter as packed."
    return Plot(Figure("size-gaps", alt, caption), data, partial(plot_gaps.size_gaps, data))
