"""The figures of gaps: how far each is behind, with what other examples and seeds could change.

As in `reports.figures.plots`: a tidy frame in, a figure out, None where there is nothing to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reports.figures.plot_data import decimals, signed, tidy
from reports.figures.plot_parts import (
    ROWS,
    canvas,
    cut,
    heading,
    key,
    legend,
    log_span,
    log_ticks,
    quantizer_keys,
    row_labels,
    rows_height,
    set_ticks,
    settled,
    span,
)
from reports.figures.style import SMALL, Look, mark, size

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


def gaps(
    rows: pd.DataFrame, look: Look, unit: str = "nats per completion token", above: str = "the best"
) -> Figure | None:
    """How far each stands above the best, or another one, and what other eval examples could change: hollow where that
    holds zero.

    `rows`: `label`, `quantizer`, `difference` (in `unit`; 0 for the best itself), `low`, `high` (95 % interval; NaN: none).
    """
    rows = tidy(rows, ["difference"], ["low", "high"])
    if rows.empty:
        return None
    shown = rows.head(ROWS)
    known = shown["low"].notna() & shown["high"].notna()
    tied = known & (shown["low"] <= 0) & (shown["high"] >= 0)
    with look.context():
        figure, (axes,) = canvas(rows_height(len(shown), 0.3) + 0.6)
        axes.set_xlim(
            span([0.0, *shown["difference"], *shown.loc[known, "low"], *shown.loc[known, "high"]], 0.04, 0.04)
        )
        axes.axvline(0, color=look.quiet, lw=1, zorder=1)
        digits = decimals(*axes.get_xlim())
        for place, at in enumerate(shown.index):
            of, (difference, low, high) = (
                mark(shown["quantizer"][at], look),
                shown.loc[at, ["difference", "low", "high"]],
            )
            words = f"{signed(difference, digits)}  (no interval)" if difference else "0"
            if known[at]:
                axes.hlines(place, low, high, colors=of.colour, lw=1.6, zorder=2)
                words = f"{signed(difference, digits)}  ({signed(low, digits)} to {signed(high, digits)})"
            face = look.background if tied[at] else of.colour
            axes.scatter(
                [difference], [place], s=44 * of.scale, marker=of.marker, fc=face, ec=of.colour, lw=1.4, zorder=3
            )
            row = axes.get_yaxis_transform()
            axes.text(1.02, place, words, transform=row, fontsize=SMALL, va="center_baseline", color=look.quiet)
        row_labels(axes, shown["label"], look)
        axes.set_xlabel(f"{unit} above {above}" + (", 95 % interval" if known.any() else "") + cut(rows))
        axes.grid(True, axis="x")
        handles = quantizer_keys(shown["quantizer"], look)
        legend(figure, [*handles, *_hollow(tied, look)])
        return settled(figure)


def size_gaps(points: pd.DataFrame, look: Look) -> Figure | None:
    """How far each stands above full precision, over the size of its packed adapter: hollow where the interval holds zero.

    `points`: `quantizer`, `adapter_bytes`, `percent` (of full precision's loss; 0 for itself), `low`, `high` (95 %
    interval; NaN: none).
    """
    points = tidy(points, ["adapter_bytes", "percent"], ["low", "high"])
    points = points[points["adapter_bytes"] > 0]
    if points.empty:
        return None
    known = points["low"].notna() & points["high"].notna()
    tied = known & (points["low"] <= 0) & (points["high"] >= 0)
    ends = points.loc[known, ["low", "high"]].to_numpy().ravel()
    with look.context():
        figure, (axes,) = canvas()
        axes.set_ylim(span([0.0, *points["percent"], *ends], 0.06, 0.06))
        axes.set_xscale("log")
        places = side_by_side(points["adapter_bytes"])
        axes.set_xlim(log_span(places, 0.07))
        ticks = log_ticks(*axes.get_xlim())
        set_ticks(axes.xaxis, ticks, [size(tick) for tick in ticks])
        axes.set_xlabel("adapter as packed, log scale")
        heading(axes, "% above full precision's loss" + (", 95 % interval" if known.any() else ""))
        axes.grid(True)
        axes.axhline(0, color=look.quiet, lw=1, zorder=1)
        for place, at in zip(places, points.index, strict=True):
            of, percent = mark(points["quantizer"][at], look), points["percent"][at]
            if known[at]:
                axes.vlines(place, points["low"][at], points["high"][at], colors=of.colour, lw=1.6, zorder=2)
            face = look.background if tied[at] else of.colour
            axes.scatter([place], [percent], s=54 * of.scale, marker=of.marker, fc=face, ec=of.colour, lw=1.4, zorder=3)
        legend(figure, [*quantizer_keys(points["quantizer"], look), *_hollow(tied, look)])
        return settled(figure)


def side_by_side(sizes: pd.Series) -> list[float]:
    """Places on a logarithmic axis for sizes of which some are nearly equal: these stand apart by what can be seen."""
    logs = np.log10(sizes.to_numpy(dtype=float))
    step = 0.02 * max(float(logs.max() - logs.min()), 0.3)
    order = np.argsort(logs, kind="stable")
    places = logs.copy()
    group: list[int] = []
    for number, at in enumerate(order):
        group.append(int(at))
        last = number + 1 == len(order)
        if last or logs[order[number + 1]] - logs[group[0]] > 1.5 * step:
            middle = float(logs[group].mean())
            for rank, member in enumerate(group):
                places[member] = middle + (rank - (len(group) - 1) / 2) * step if len(group) > 1 else logs[member]
            group = []
    return [float(10**place) for place in places]


def _hollow(tied: pd.Series, look: Look) -> list[Artist]:
    """The entry of what is tied."""
    if not tied.any():
        return []
    style: dict[str, Any] = {"marker": "o", "mfc": look.background, "mec": look.quiet, "ms": 6, "mew": 1.4}
    return [key("hollow: tied, the interval holds zero", color=look.quiet, lw=1.6, **style)]
