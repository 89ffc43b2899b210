"""What the figures of a report share: canvas, limits, ticks, legend, points, and words that do not cover each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from reports.figures.style import DPI, FONT, HEIGHT, SMALL, WIDTH, Look, Mark, label, mark, number, ordered, whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ROWS: Final = 40
"""Rows of a figure with a row each; further ones are counted."""
FEW: Final = 6
"""Values of a hyperparameter up to which its axis has ticks at them and nowhere else."""
DOZEN: Final = 12
ARROW: Final = 10
"""A caret whose base is at the point."""
AROUND: Final = ((-1, -1), (0, -1), (1, 1), (1, 0), (-1, 0), (0, 1), (1, -1), (-1, 1))
"""Where a name may stand, the best first: below and left of a point on the front there is no other point."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def canvas(height: float = HEIGHT, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; they share y."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.04)
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    return figure, list(grid.flat)


def heading(axes: Axes, words: str) -> None:
    """What y is: above the axis, where it reads without turning one's head."""
    axes.set_title(words, loc="left", fontsize=FONT, pad=8)


def span(values: Iterable[float], before: float, after: float) -> tuple[float, float]:
    """Limits around `values` with these margins, in shares of their range; some room where they are all equal."""
    held = list(values)
    low, high = min(held), max(held)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-12):
        room = abs(low) * 0.05 or 1.0
        return low - room, high + room
    return low - before * (high - low), high + after * (high - low)


def log_span(values: Iterable[float], margin: float) -> tuple[float, float]:
    """The same for a logarithmic axis."""
    held = [math.log10(value) for value in values]
    low, high = (min(held), max(held)) if max(held) - min(held) > 1e-6 else (min(held) - 0.3, max(held) + 0.3)
    room = margin * (high - low)
    return float(10 ** (low - room)), float(10 ** (high + room))


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between two positive limits: the coarsest kind of which there are three, else evenly spaced."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [float(f"{m}e{e}") for e in exponents for m in mantissas]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / most)]
    from matplotlib.ticker import MaxNLocator

    return [float(t) for t in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high]


def set_ticks(axis: Axis, at: Sequence[float], words: Sequence[str]) -> None:
    """These ticks with these words and no others."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(at, labels=words, parse_math=False)
    axis.set_minor_locator(NullLocator())


def settled(figure: Figure) -> Figure:
    """Lay `figure` out once and for all, so that what is placed by measure stays where it is."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # "none" would leave one that does nothing, for which each file is drawn twice
    return figure


def count_ticks(axis: Axis, values: Iterable[float] = ()) -> None:
    """Ticks at `values` where they are few and lie evenly, else at whole numbers; thousands apart."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    found = sorted(set(values))
    if 0 < len(found) <= 10 and len({round(b - a, 9) for a, b in itertools.pairwise(found)}) <= 1:
        set_ticks(axis, found, [whole(value) for value in found])
        return
    axis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: whole(value)))


def value_ticks(axes: Axes, x: pd.Series, log: bool, categories: Sequence[str], columns: int) -> None:
    """Limits and ticks of a hyperparameter, one of `columns` panels: at its values where they are few, and never so close
    that the words touch."""
    axes.set_xscale("log" if log else "linear")
    axes.set_xlim(log_span(x, 0.1) if log else (-0.5, len(categories) - 0.5) if categories else span(x, 0.1, 0.1))
    low, high = axes.get_xlim()
    if categories:
        at, words = [float(place) for place in range(len(categories))], [label(word, 14) for word in categories]
    else:
        at = sorted(set(x))
        if len(at) > FEW:
            from matplotlib.ticker import MaxNLocator

            round_values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            at = log_ticks(low, high) if log else [float(value) for value in round_values if low <= value <= high]
        words = [number(float(f"{value:.6g}")) for value in at]
    kept: list[int] = []
    taken = -math.inf
    for place, (value, word) in enumerate(zip(at, words, strict=True)):
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        middle, half = share * 700 / columns, 3.4 * len(word) + 4  # pixels; a character has about 6.5
        if middle - half >= taken:
            kept.append(place)
            taken = middle + half
    set_ticks(axes.xaxis, [at[place] for place in kept], [words[place] for place in kept])


def row_labels(axes: Axes, words: Iterable[object], look: Look) -> None:
    """A row for each of `words`, the first on top."""
    shown = [label(word) for word in words]
    set_ticks(axes.yaxis, range(len(shown)), shown)
    axes.tick_params(axis="y", labelcolor=look.ink)
    axes.set_ylim(len(shown) - 0.4, -0.6)


def rows_height(count: int, each: float) -> float:
    """Inches of a figure with a row each."""
    return 0.6 + each * count


def cut(rows: pd.DataFrame) -> str:
    """What a heading says of rows that are not drawn."""
    return f"; the first {ROWS} of {len(rows):,}" if len(rows) > ROWS else ""


def beside(axes: Axes, words: str, x: float, y: float, look: Look) -> None:
    """A bar's value, right of its end."""
    axes.annotate(
        words, (x, y), (4, 0), textcoords="offset points", va="center_baseline", fontsize=SMALL, color=look.ink
    )


# --- points


def scatter(
    axes: Axes,
    points: pd.DataFrame,
    x: str,
    look: Look,
    *,
    area: float,
    zorder: float,
    alpha: float = 1.0,
    fade: float = 1.0,
    filled: bool = True,
    image: bool = False,
) -> None:
    """`points` at their eval loss, a collection for each quantizer, in the quantizers' order."""
    for name in ordered(points["quantizer"]):
        part, of = points[points["quantizer"] == name], mark(name, look)
        colour = look.faded(of.colour, fade)
        # An edge in the page's colour keeps points apart that lie over each other.
        face, edge, width = (colour, look.background, 0.6) if filled else ("none", colour, 1.0)
        if image:
            width = 0.0 if filled else 0.6
        axes.scatter(
            part[x], part["eval_loss"], s=area * of.scale, marker=of.marker, facecolors=face, edgecolors=edge,
            linewidths=width, alpha=alpha, zorder=zorder, rasterized=image,
        )  # fmt: skip


def leave(axes: Axes, at: Sequence[float] | pd.Series, look: Look) -> None:
    """Arrows above the axes where something lies beyond them."""
    if len(at):
        above = axes.get_xaxis_transform()
        axes.scatter(
            at, [1.0] * len(at), s=22, marker=ARROW, color=look.quiet, transform=above, clip_on=False, zorder=5
        )


def name_points(
    axes: Axes, names: Sequence[str], at: Sequence[tuple[float, float]], soft: Sequence[Box], look: Look
) -> None:
    """A name beside each point `at`, in data's units: over no other name, none of these points and not out of the axes, and
    over as little of `soft` (in pixels) as can be. One for which there is no room is left out; where there are many points,
    so is one that would stand far off."""
    rings = (6.0, 16.0, 32.0, 56.0) if len(at) <= DOZEN else (6.0, 12.0)
    spots = [tuple(spot) for spot in axes.transData.transform(np.asarray(at, dtype=float))]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    pixel, bounds = DPI / 72, axes.bbox.extents
    for name, spot, (x, y) in zip(names, at, spots, strict=True):
        drawn = axes.annotate(
            name, spot, (0, 0), textcoords="offset points", fontsize=SMALL, color=look.ink, zorder=5,
            arrowprops={"arrowstyle": "-", "color": look.quiet, "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        measured = drawn.get_window_extent()
        wide, high = measured.width + 2, measured.height
        best: tuple[float, float, float, Box] | None = None
        for far, (right, up) in itertools.product(rings, AROUND):
            left = x + right * far * pixel - wide * (1 - right) / 2
            low = y + up * far * pixel - high * (1 - up) / 2
            box = (left, low, left + wide, low + high)
            free = box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
            if free and not over(box, taken):
                cost = over(box, soft) + far / 20
                best = min(best or (cost, far, 0.0, box), (cost, far, 0.0, box))
        if best is None:
            drawn.remove()
            continue
        _, far, _, box = best
        drawn.set_position(((box[0] + 1 - x) / pixel, (box[1] - y) / pixel))
        if far < 10 and drawn.arrow_patch is not None:
            drawn.arrow_patch.set_visible(False)
        taken.append(box)


def over(box: Box, others: Sequence[Box]) -> int:
    """How many of `others` `box` touches."""
    if not len(others):
        return 0
    left, low, right, high = np.asarray(others).T
    return int(np.sum((left < box[2]) & (right > box[0]) & (low < box[3]) & (high > box[1])))


def draw_lines(
    axes: Axes,
    paths: Sequence[np.ndarray],
    marks: Sequence[Mark],
    *,
    width: float,
    alpha: float,
    zorder: float,
    dashed: bool,
    image: bool,
) -> None:
    """Curves as one collection, in their own order, so that no quantizer covers another."""
    from matplotlib.collections import LineCollection

    lines = LineCollection(
        list(paths),
        colors=[of.colour for of in marks],
        linewidths=width,
        linestyles=[of.line for of in marks] if dashed else "solid",
        alpha=alpha,
        zorder=zorder,
        rasterized=image,
    )
    axes.add_collection(lines)


# --- legend


def key(words: str, **style: Any) -> Line2D:
    """An entry of the legend, by the properties of a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=words, **style)


def quantizer_keys(quantizers: Iterable[str], look: Look, *, line: bool = False, dashed: bool = True) -> list[Artist]:
    """An entry for each quantizer; beyond the first dozen they are counted."""
    names = ordered(quantizers)
    handles: list[Artist] = []
    for name in names[:DOZEN]:
        of = mark(name, look)
        style: dict[str, Any] = {"ls": of.line if dashed else "solid", "lw": 1.4} if line else {"lw": 0}
        style |= {
            "marker": of.marker,
            "ms": (5 if line else 6) * math.sqrt(of.scale),
            "mec": look.background,
            "mew": 0.6,
        }
        handles.append(key(label(name), color=of.colour, **style))
    if len(names) > DOZEN:
        handles.append(key(f"and {len(names) - DOZEN:,} more", lw=0))
    return handles


def arrow_key(count: int, look: Look) -> list[Artist]:
    """The entry of `leave`."""
    return [key(f"{count:,} beyond the axis", color=look.quiet, marker=ARROW, ms=7, mew=0, lw=0)] if count else []


def legend(figure: Figure, handles: Sequence[Artist], *, long: bool = False) -> None:
    """Above the axes, in as few rows as fit, read row by row: it cannot cover anything. `long`: handles are of lines."""
    for rows in range(1, len(handles) + 1):
        columns = math.ceil(len(handles) / rows)
        across = [handle for start in range(columns) for handle in handles[start::columns]]  # matplotlib fills columns
        drawn = figure.legend(
            handles=across, loc="outside upper left", ncols=columns, frameon=False, borderpad=0.3, borderaxespad=0.4,
            handlelength=3 if long else 1.4, handletextpad=0.7, columnspacing=2,
        )  # fmt: skip
        if columns == 1 or drawn.get_window_extent().width < 0.97 * figure.bbox.width:
            return
        drawn.remove()
