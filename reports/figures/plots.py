"""The figures of a report, one function each: a tidy frame in, a figure out, None where there is nothing to draw.

Drawing only: what is drawn is computed elsewhere, and lies as CSV beside the figure. Rows without a finite value for what a
figure needs are left out. Eval loss is in nats per completion token throughout; lower is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from reports.figures.plot_data import OUTLIER, Panel, highest, outliers, tidy
from reports.figures.plot_parts import (
    ROWS,
    arrow_key,
    beside,
    canvas,
    count_ticks,
    cut,
    draw_lines,
    heading,
    key,
    leave,
    legend,
    log_span,
    log_ticks,
    name_points,
    quantizer_keys,
    row_labels,
    rows_height,
    scatter,
    set_ticks,
    settled,
    span,
    value_ticks,
)
from reports.figures.style import HEIGHT, MANY, SMALL, Look, Mark, label, mark, size, whole
from reports.load.values import ids_in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS: Final = "eval loss, nats per completion token"
TRAINING: Final = "training loss, nats per completion token"
CROWD: Final = 60
"""Trials above which learning curves are thin."""
ENDS: Final[dict[str, str | tuple[int, int, int]]] = {
    "pruned": "x",
    "diverged": (6, 2, 0),
    "failed": "+",
    "interrupted": "|",
    "unknown": "_",
}
"""What a curve ends in where its trial did not complete; none of them is a quantizer's marker."""


def quality_size(points: pd.DataFrame, look: Look) -> Figure | None:
    """Eval loss against the size of the packed adapter, and the best there is for each size.

    `points`: `label`, `quantizer`, `eval_loss`, `error` (one standard error; NaN: none), `adapter_bytes`, `front` (bool).
    """
    points = tidy(points, ["eval_loss", "adapter_bytes"], ["error"])
    points = points[points["adapter_bytes"] > 0]
    if points.empty:
        return None
    front = points[points["front"].astype(bool)].sort_values(["adapter_bytes", "eval_loss"], kind="stable")
    others = points[~points["front"].astype(bool)]
    kept, out = outliers(points, front["eval_loss"].max() if len(front) else -math.inf)
    spread = kept[kept["error"] > 0]
    ends = (spread["eval_loss"] - spread["error"], spread["eval_loss"] + spread["error"])
    with look.context():
        figure, (axes,) = canvas()
        axes.set_ylim(span([*kept["eval_loss"], *ends[0], *ends[1]], 0.14, 0.06))
        axes.set_xscale("log")
        axes.set_xlim(log_span(points["adapter_bytes"], 0.07))
        ticks = log_ticks(*axes.get_xlim())
        set_ticks(axes.xaxis, ticks, [size(tick) for tick in ticks])
        axes.set_xlabel("adapter as packed, log scale")
        heading(axes, LOSS)
        axes.grid(True)

        many = len(points) > MANY
        scatter(axes, others, "adapter_bytes", look, area=28, fade=0.45, zorder=2, image=many)
        scatter(axes, front, "adapter_bytes", look, area=54, zorder=4)
        leave(axes, out["adapter_bytes"], look)
        if len(spread):
            shares = np.where(spread["front"].astype(bool), 1.0, 0.45)
            hues = [mark(name, look).colour for name in spread["quantizer"]]
            colours = [look.faded(hue, share) for hue, share in zip(hues, shares, strict=True)]
            axes.vlines(spread["adapter_bytes"], *ends, colors=colours, lw=1.1, zorder=1.9, rasterized=many)
        handles = quantizer_keys(points["quantizer"], look)
        if len(front) > 1:
            x, y = front["adapter_bytes"], front["eval_loss"]
            axes.plot(x, y, drawstyle="steps-post", color=look.quiet, lw=1.1, zorder=3)
            handles.append(key("best for its size", color=look.quiet, lw=1.1))
        if len(spread):
            handles.append(key("± one standard error", color=look.quiet, marker="|", ms=10, mew=1.1, lw=0))
        legend(figure, [*handles, *arrow_key(len(out), look)])
        settled(figure)
        if len(front):
            names = [label(name) for name in front["label"]]
            at = list(zip(front["adapter_bytes"], front["eval_loss"], strict=True))
            name_points(axes, names, at, obstacles(axes, others, spread, at), look)
        return figure


def obstacles(
    axes: Axes, others: pd.DataFrame, spread: pd.DataFrame, front: Sequence[tuple[float, float]]
) -> list[tuple[float, float, float, float]]:
    """What a name should not cover, in pixels: the other points, the error bars, the steps of the front."""

    def boxes(lower: Sequence[tuple[float, float]], upper: Sequence[tuple[float, float]], room: float) -> np.ndarray:
        corners = [axes.transData.transform(np.asarray(ends, dtype=float).reshape(-1, 2)) for ends in (lower, upper)]
        return np.column_stack([corners[0] - room, corners[1] + room])

    points = list(zip(others["adapter_bytes"], others["eval_loss"], strict=True))
    x, y, error = spread["adapter_bytes"], spread["eval_loss"], spread["error"]
    ends = [list(zip(x, end, strict=True)) for end in (y - error, y + error)]
    flat = [(right, low) for (_, low), (right, _) in itertools.pairwise(front)]
    falls = list(front[1:])
    found = [boxes(points, points, 4), boxes(ends[0], ends[1], 1), boxes(front[:-1], flat, 1), boxes(falls, flat, 1)]
    return [tuple(box) for box in np.vstack(found)]


def learning_curves(curves: pd.DataFrame, look: Look, what: str = LOSS) -> Figure | None:
    """Eval loss by step, a line per trial; the mark at its end says how it ended. A curve far above the others leaves the
    axes, with an arrow there; step 0, which is the base's where nothing else was begun with, stays on them where it
    squashes no curve. Of more than `CROWD` trials, only the best of each quantizer stands out.

    `curves`: `trial_id`, `quantizer`, `step`, `eval_loss`, `status` and `best` (bool), both of the whole trial.
    """
    return _curves(curves, look, what)


def metric_curves(curves: pd.DataFrame, words: str, higher: bool, look: Look) -> Figure | None:
    """The same of a metric, `value` in the place of `eval_loss`: `words` is what it is called. No curve leaves the axes,
    but what it begins with may: far below where higher is better."""
    return _curves(curves.rename(columns={"value": "eval_loss"}), look, words, whole=True, higher=higher)


def _curves(
    curves: pd.DataFrame, look: Look, words: str, *, whole: bool = False, higher: bool = False
) -> Figure | None:
    curves = tidy(curves, ["step", "eval_loss"])
    if curves.empty:
        return None
    curves = curves.assign(trial_id=curves["trial_id"].astype(str), status=curves["status"].astype(str))
    curves = curves.sort_values(["trial_id", "step"], kind="stable", ignore_index=True)
    first = np.flatnonzero(~curves["trial_id"].duplicated().to_numpy())
    paths = np.split(curves[["step", "eval_loss"]].to_numpy(), first[1:])
    trials = curves.drop_duplicates("trial_id", keep="last", ignore_index=True)
    best, completed = trials["best"].astype(bool), trials["status"] == "completed"
    learned = [path[path[:, 0] > 0] if path[-1, 0] > 0 else path for path in paths]
    lowest = curves["eval_loss"].min()
    tops = pd.Series([path[:, 1].max() for path in learned])
    ceiling = tops.max() if whole else highest(tops, lowest)
    gone = [path[np.argmax(path[:, 1] > ceiling), 0] for path in learned if (path[:, 1] > ceiling).any()]
    begun = curves.loc[curves["step"] == 0, "eval_loss"]
    floor = min(path[:, 1].min() for path in learned) if higher else lowest
    far = OUTLIER * (ceiling - floor) or math.inf
    ceiling, floor = max([ceiling, *begun[begun <= ceiling + far]]), min([floor, *begun[begun >= floor - far]])
    crowd, image = len(trials) > CROWD, len(curves) > MANY
    with look.context():
        figure, (axes,) = canvas()
        axes.set_xlim(span(curves["step"], 0.03, 0.03))
        axes.set_ylim(span(curves.loc[curves["eval_loss"].between(floor, ceiling), "eval_loss"], 0.12, 0.05))
        count_ticks(axes.xaxis, curves["step"])
        axes.set_xlabel("optimizer step")
        heading(axes, words)
        axes.grid(True, axis="y")
        marks = [mark(name, look) for name in trials["quantizer"]]
        faint = min(0.35, max(0.08, 40 / len(trials))) if crowd else 0.9
        ahead = completed & (trials.index.isin(leaders(trials[completed], higher)) if crowd else False)
        layers = [
            (trials[~completed & ~best], 0.6 if crowd else 1.2, 0.6 * faint, 2.0),
            (trials[completed & ~best & ~ahead], 0.7 if crowd else 1.4, faint, 2.5),
            (trials[ahead & ~best], 1.4, 1.0, 3.0),
            (trials[best], 2.8, 1.0, 3.5),
        ]
        for part, width, alpha, zorder in layers:
            shared: dict[str, Any] = {"alpha": alpha, "zorder": zorder, "image": image and zorder < 3}
            thin = crowd and zorder < 3
            of = [marks[at] for at in part.index]
            draw_lines(axes, [paths[at] for at in part.index], of, width=width, dashed=not thin, **shared)
            for (name, status), ended in part.groupby(["quantizer", "status"]):
                draw_ends(axes, ended, str(status), mark(str(name), look), look, small=thin, **shared)
        leave(axes, gone, look)
        handles = quantizer_keys(trials["quantizer"], look, line=True)
        found = set(trials["status"]) - {"completed"}
        for status in [*(s for s in ENDS if s in found), *sorted(found - set(ENDS))]:
            handles.append(key(label(status), color=look.quiet, marker=end(status), ms=6, mew=1.2, lw=0))
        legend(figure, [*handles, *arrow_key(len(gone), look)], long=True)
        settled(figure)
        if best.any():
            name_best(axes, trials[best], look)
        return figure


def training_curves(curves: pd.DataFrame, look: Look) -> Figure | None:
    """The same of the training loss, `train_loss`."""
    return learning_curves(curves.rename(columns={"train_loss": "eval_loss"}), look, TRAINING)


def leaders(completed: pd.DataFrame, higher: bool = False) -> pd.Index:
    """The trial of each quantizer that ended lowest, or highest: in a crowd it stands out."""
    order = completed.assign(eval_loss=-completed["eval_loss"]) if higher else completed
    return order.sort_values(["eval_loss", "trial_id"], key=ids_in_order).drop_duplicates("quantizer").index


def draw_ends(
    axes: Axes,
    trials: pd.DataFrame,
    status: str,
    of: Mark,
    look: Look,
    *,
    alpha: float,
    zorder: float,
    image: bool,
    small: bool,
) -> None:
    """The mark at the end of each curve: a quantizer's own where the trial completed."""
    if status == "completed":
        style: dict[str, Any] = {"marker": of.marker, "s": (8 if small else 30) * of.scale, "ec": look.background}
    else:
        style = {"marker": end(status), "s": 10 if small else 36}
    width = 1.2 if status != "completed" else 0.0 if small else 0.5
    axes.scatter(
        trials["step"],
        trials["eval_loss"],
        color=of.colour,
        lw=width,
        alpha=min(1.0, 2 * alpha) if small else max(alpha, 0.9),
        zorder=zorder + 0.1,
        rasterized=image,
        **style,
    )


def end(status: str) -> Any:
    """The marker of a trial that did not complete."""
    return ENDS.get(status, ENDS["unknown"])


def name_best(axes: Axes, best: pd.DataFrame, look: Look) -> None:
    """The best trial's name, below the end of its curve, where the figure is emptiest."""
    lead, tied = best.iloc[0], len(best) - 1
    words = f"best: {label(lead['trial_id'])}" + (f" and {tied:,} that tie" if tied else "")
    right = lead["step"] > sum(axes.get_xlim()) / 2
    from matplotlib.patheffects import withStroke

    axes.annotate(
        words, (lead["step"], lead["eval_loss"]), (4 if right else -4, -8), textcoords="offset points", va="top",
        ha="right" if right else "left", fontsize=SMALL, zorder=6,
        path_effects=[withStroke(linewidth=2.5, foreground=look.background)],
    )  # fmt: skip


def importances(bars: pd.DataFrame, look: Look) -> Figure | None:
    """How much each axis of the search space matters, the largest first; hollow what chance explains, up to its mark.

    `bars`: `axis`, `importance` (0 to 1), `chance` (NaN: unknown), `told` (bool: more than chance).
    """
    bars = tidy(bars, ["importance"], ["chance"]).sort_values("importance", ascending=False, kind="stable")
    if bars.empty:
        return None
    shown = bars.head(ROWS)
    with look.context():
        figure, (axes,) = canvas(rows_height(len(shown), 0.36))
        faces = [look.accent if told else look.background for told in shown["told"].astype(bool)]
        axes.barh(range(len(shown)), shown["importance"], height=0.62, color=faces, ec=look.accent, lw=1.0)
        ends = shown[["importance", "chance"]].max(axis=1)
        for place, (value, chance, end) in enumerate(zip(shown["importance"], shown["chance"], ends, strict=True)):
            words = "< 0.01" if 0 < value < 0.005 else f"{value:.2f}"
            words += f" (by chance {chance:.2f})" if 0 <= chance < 100 else ""
            beside(axes, words, max(end, 0.0), place, look)
        known = shown["chance"].notna().to_numpy()
        places = np.flatnonzero(known)
        axes.vlines(shown["chance"][known], places - 0.4, places + 0.4, colors=look.ink, lw=1.6, zorder=3)
        axes.set_xlim(min(0.0, shown["importance"].min()), max(ends.max(), 1e-9) * 1.25)
        row_labels(axes, [str(name).replace("_", " ") for name in shown["axis"]], look)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        heading(axes, "importance, 0 to 1; the mark: what chance explains" + cut(bars))
        return settled(figure)


def slices(points: pd.DataFrame, axes: Sequence[tuple[str, bool]], look: Look) -> Figure | None:
    """Eval loss against each hyperparameter, a panel each; trials that did not get the full budget are hollow.

    `points`: `quantizer`, `eval_loss`, `ranked` (bool: full budget), and a column per hyperparameter.
    `axes`: the hyperparameters, and whether each has a logarithmic axis. One that is not of numbers is a category.
    """
    points = tidy(points, ["eval_loss"])
    panels = [panel for panel in (Panel.of(points, name, log) for name, log in axes) if panel.x.notna().any()]
    if not panels:
        return None
    kept, out = outliers(points)
    full, many = points["ranked"].astype(bool), len(points) * len(panels) > MANY
    columns = {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3, 9: 3}.get(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    with look.context():
        figure, grid = canvas(HEIGHT if rows == 1 else 0.8 + 2.6 * rows, rows, columns)
        grid[0].set_ylim(span(kept["eval_loss"], 0.06, 0.06))
        style = {"area": 10.0, "alpha": 0.5} if many else {"area": 24.0, "alpha": 0.8}
        for at, panel in zip(grid, panels, strict=False):
            drawn = points.assign(x=panel.x)[panel.x.notna()]
            for filled, part in ((False, drawn[~full[drawn.index]]), (True, drawn[full[drawn.index]])):
                scatter(at, part, "x", look, zorder=3, filled=filled, image=many, **style)
            leave(at, panel.x[out.index].dropna(), look)
            value_ticks(at, drawn["x"], panel.log, panel.categories, columns)
            at.set_xlabel(label(panel.name.replace("_", " "), 24) + (", log scale" if panel.log else ""))
            at.grid(True)
        for empty in grid[len(panels) :]:
            empty.set_visible(False)
        heading(grid[0], LOSS)
        handles = quantizer_keys(points["quantizer"], look)
        if not full.all():
            hollow: dict[str, Any] = {"marker": "o", "mfc": "none", "mec": look.quiet, "ms": 5, "lw": 0}
            handles.append(key("hollow: not the full budget", **hollow))
        legend(figure, [*handles, *arrow_key(len(out), look)])
        return settled(figure)


def budget(rows: pd.DataFrame, look: Look) -> Figure | None:
    """Optimizer steps taken, and steps saved by stopping early, by how the trials ended.

    `rows`: `status`, `trials`, `steps_run`, `steps_saved`.
    """
    rows = tidy(rows, ["trials", "steps_run", "steps_saved"])
    if rows.empty:
        return None
    shown = rows.head(ROWS)
    run, saved, places = shown["steps_run"], shown["steps_saved"], range(len(shown))
    with look.context():
        from matplotlib.patches import Patch

        figure, (axes,) = canvas(rows_height(len(shown), 0.4) + 0.6)
        hatched: dict[str, Any] = {
            "facecolor": look.background,
            "edgecolor": look.accent,
            "hatch": "////",
            "linewidth": 0.8,
        }
        axes.barh(places, run, height=0.6, color=look.accent)
        axes.barh(places, saved, left=run, height=0.6, **hatched)
        for place, taken, spared in zip(places, run, saved, strict=True):
            beside(axes, whole(taken) + (f" + {whole(spared)} saved" if spared else ""), taken + spared, place, look)
        axes.set_xlim(0, max((run + saved).max(), 1e-9) * 1.3)
        counts = zip(shown["status"], shown["trials"], strict=True)
        row_labels(axes, [f"{label(status, 28)} ({whole(trials)})" for status, trials in counts], look)
        count_ticks(axes.xaxis)
        axes.set_xlabel("optimizer steps, all trials together" + cut(rows))
        axes.grid(True, axis="x")
        legend(figure, [Patch(color=look.accent, label="taken"), Patch(label="saved by stopping early", **hatched)])
        return settled(figure)
