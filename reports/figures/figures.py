"""The data of each figure, computed apart from its drawing (`reports.figures.plots`) and written beside it as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pandas as pd

from reports.document.cells import value
from reports.document.document import Figure, plain
from reports.figures import plot_gaps, plots
from reports.figures.style import Draw, Plane
from reports.load.sweep import Sweep
from reports.load.values import ids_in_order
from reports.statistics.comparable import Comparable, Row, pareto, rows
from reports.statistics.full_precision import Against
from reports.statistics.importances import Importances
from reports.statistics.paired import Interval
from reports.statistics.quantizers import QuantizerBest
from reports.statistics.verdict import Verdict

SLICED: Final = ("learning_rate", "rank", "alpha")
"""Axes that the eval loss is drawn over, those of them that vary."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of a figure, of which a page says whose one is."""

    data: pd.DataFrame
    """`trial_id`, `step` and the column `y`."""
    y: str
    about: dict[str, str]
    """Of each trial, in words."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure to be drawn: its place in the document, its data, and what draws that."""

    figure: Figure
    data: pd.DataFrame
    draw: Draw
    curves: Curves | None = None
    """What of it can be pointed at; None: nothing."""


def _plot(name: str, draw: Callable[..., Any], data: pd.DataFrame, alt: str, caption: str, *more: Any) -> Plot | None:
    return Plot(Figure(name, alt, caption), data, partial(draw, data, *more)) if len(data) else None


def quality_size(ranked: pd.DataFrame) -> Plot | None:
    """Eval loss against the adapter's bytes as packed, with the Pareto front over these two."""
    frame = ranked[ranked["adapter_bytes"].notna()]
    data = pd.DataFrame(
        {
            "label": frame["name"],
            "quantizer": frame["config.quantizer"].astype(str),
            "eval_loss": frame["eval_loss"],
            "error": frame["error"],
            "adapter_bytes": frame["adapter_bytes"].astype("int64"),
            "tokens": frame["tokens"],
            "front": pareto(frame, ["eval_loss", "adapter_bytes"]),
        }
    )
    return _plot(
        "quality-size",
        plots.quality_size,
        data,
        "Eval loss of each configuration at full budget against the bytes of its adapter as packed.",
        "Eval loss against the adapter's size as packed. The line joins the configurations that no other beats in both.",
    )


def learning_curves(sweep: Sweep, best: str | None, varying: Sequence[str] = ()) -> Plot | None:
    """Eval loss over optimizer steps, trial by trial, with the points where trials were stopped."""
    caption = "Eval loss at each evaluation. A cross marks where a trial was stopped; the best is drawn heavy."
    curves = sweep.curves[sweep.curves["eval_loss"].notna()]
    curves, begun = _with_base(sweep, curves, "eval_loss", sweep.bare.eval.loss if sweep.bare is not None else None)
    alt = "Eval loss of every trial at each of its evaluations, over optimizer steps."
    data = _by_trial(sweep, curves, "eval_loss", best)
    drawn = _plot("learning-curves", plots.learning_curves, data, alt, caption + begun)
    return drawn and replace(drawn, curves=Curves(data, "eval_loss", _described(sweep, varying)))


def training_curves(sweep: Sweep, best: str | None, varying: Sequence[str] = ()) -> Plot | None:
    """Training loss over optimizer steps, trial by trial."""
    curves = sweep.curves[sweep.curves["train_loss"].notna()]
    caption = "Training loss, the mean of the steps since the evaluation before; each trial meets batches of its own."
    alt = "Training loss of every trial between its evaluations, over optimizer steps."
    data = _by_trial(sweep, curves, "train_loss", best)
    drawn = _plot("training-curves", plots.training_curves, data, alt, caption)
    return drawn and replace(drawn, curves=Curves(data, "train_loss", _described(sweep, varying)))


def pointed(curves: Curves, plane: Plane) -> dict[str, Any]:
    """What a page needs to say whose curve is pointed at: where the axes lie, and of each curve the trial, words, steps and
    losses."""
    lines = [
        [
            trial,
            curves.about.get(str(trial), ""),
            own["step"].tolist(),
            [float(f"{loss:.6g}") for loss in own[curves.y]],
        ]
        for trial, own in curves.data.groupby("trial_id", sort=False)
    ]
    return {"plane": list(plane), "lines": lines}


def _with_base(sweep: Sweep, curves: pd.DataFrame, column: str, bare: float | None) -> tuple[pd.DataFrame, str]:
    """`curves` with what the base has without an adapter at step 0 of all trials that begin there, and what a caption says
    of that; of one that began with another's weights, step 0 is its own."""
    own = curves["trial_id"].isin({*curves.loc[curves["step"] == 0, "trial_id"], *sweep.warm_started})
    if bare is None or own.all():
        return curves, ""
    begun = curves[~own].drop_duplicates("trial_id").assign(step=0, **{column: bare})
    curves = pd.concat([begun, curves]).sort_values(["trial_id", "step"], key=ids_in_order, ignore_index=True)
    but = " but those that began with another trial's weights" if own.any() else ""
    return curves, f" Each{but} begins with that of the base without an adapter."


def _by_trial(sweep: Sweep, curves: pd.DataFrame, column: str, best: str | None) -> pd.DataFrame:
    about = sweep.trials.set_index("trial_id")
    return curves[["trial_id", "step", column]].assign(
        quantizer=curves["trial_id"].map(about["config.quantizer"].astype(str)),
        status=curves["trial_id"].map(about["status"]),
        best=curves["trial_id"] == best,
    )


def _described(sweep: Sweep, varying: Sequence[str]) -> dict[str, str]:
    """What is said of each trial whose curve is pointed at."""
    found = {}
    for row in rows(sweep.trials):
        values = [f"{axis.replace('_', ' ')} {value(axis, row.get(f'config.{axis}'))}" for axis in varying]
        found[row["trial_id"]] = "; ".join([row["status"], *values])
    return found


def metric_curves(
    sweep: Sweep, metric: str, what: str, higher: bool, best: str | None, varying: Sequence[str] = ()
) -> Plot | None:
    """A metric over optimizer steps, trial by trial; `what` is what it is called."""
    measured = sweep.measured[sweep.measured["metric"] == metric]
    curves, begun = _with_base(
        sweep, measured, "value", sweep.bare.metrics.get(metric) if sweep.bare is not None else None
    )
    alt = f"{what} of every trial at each of its evaluations, over optimizer steps."
    caption = f"{what} at each evaluation. The best is drawn heavy.{begun}"
    data = _by_trial(sweep, curves, "value", best)
    drawn = _plot(f"metric-{metric.replace('_', '-')}", plots.metric_curves, data, alt, caption, what, higher)
    return drawn and replace(drawn, curves=Curves(data, "value", _described(sweep, varying)))


def importance(found: Importances) -> Plot | None:
    """What mattered, axis by axis."""
    return _plot(
        "importances",
        plots.importances,
        found.shares,
        "Share of each axis in what sets the best trials apart from all.",
        f"PED-ANOVA importances over {found.used} of {found.of} trials: those at equal budget. Hollow: within chance.",
    )


def slices(sweep: Sweep, groups: Comparable, varying: Sequence[str]) -> Plot | None:
    """Eval loss over single axes, by quantizer."""
    trials = sweep.trials[sweep.trials["config.confirms"].isna() & sweep.trials["eval_loss"].notna()]
    trials = trials[trials["status"].isin(["completed", "pruned"])]
    axes = [axis for axis in SLICED if axis in varying and pd.api.types.is_numeric_dtype(trials[f"config.{axis}"])]
    full = {trial for group in groups.ranked["trials"] for trial in group}
    data = pd.DataFrame(
        {
            "trial_id": trials["trial_id"],
            "quantizer": trials["config.quantizer"].astype(str),
            "eval_loss": trials["eval_loss"],
            "ranked": trials["trial_id"].isin(full),
            **{axis: trials[f"config.{axis}"] for axis in axes},
        }
    )
    return _plot(
        "slices",
        plots.slices,
        data if axes else data.iloc[:0],
        f"Eval loss over {', '.join(axes).replace('_', ' ')}, by quantizer.",
        "Eval loss over single axes, by quantizer. Hollow: stopped early, so its loss is of fewer steps.",
        [(axis, axis == "learning_rate") for axis in axes],
    )


def gaps(verdict: Verdict, confirmed: bool, lines: Sequence[QuantizerBest]) -> Plot | None:
    """How far behind the best the others are, with intervals: the confirmed, or the best of each quantizer."""
    found: list[tuple[Row, float, Interval | None]]
    if confirmed:
        found = [(row, 0.0, None) for row in verdict.best]
        found += [(rival.row, rival.gap, rival.interval) for rival in verdict.rivals]
    else:
        found = [(line.best, line.gap, line.interval) for line in lines if line.best and line.gap is not None]
    compared = [
        (
            f"{plain(row['name'], 30)} {plain(row['config.quantizer'], 20)}",
            str(row["config.quantizer"]),
            apart,
            interval,
        )
        for row, apart, interval in found
    ]
    return gaps_of(compared, "each confirmed configuration" if confirmed else "each quantizer's best")


def gaps_of(
    found: Sequence[tuple[str, str, float, Interval | None]],
    what: str,
    name: str = "gaps",
    unit: str = "nats per completion token",
    to: str = "the best of all",
) -> Plot | None:
    """The same for any that are compared: label, quantizer, gap to `to`, which is among them, and its interval."""
    nan = float("nan")
    data = [
        {
            "label": label,
            "quantizer": quantizer,
            "difference": apart,
            "low": interval.low if interval else nan,
            "high": interval.high if interval else nan,
        }
        for label, quantizer, apart, interval in found
    ]
    if len(data) < 2:
        return None
    alt = f"How far {what} is behind {to}, in {unit}, with 95 % intervals."
    caption = (
        f"How far {what} is behind {to}, with paired 95 % intervals, all judged together."
        " Hollow: tied, the interval holds zero."
    )
    frame = pd.DataFrame(data)
    return Plot(
        Figure(name, alt, caption),
        frame,
        partial(plot_gaps.gaps, frame, unit=unit, above=plain(to.removesuffix(" of all"), 30)),
    )


def budget(found: pd.DataFrame) -> Plot | None:
    """Optimizer steps that were taken, and those that stopping saved."""
    data = found.rename(columns={"steps": "steps_run", "saved": "steps_saved"})
    return _plot(
        "budget",
        plots.budget,
        data[["status", "trials", "steps_run", "steps_saved"]],
        "Optimizer steps taken by trials of each ending, and steps saved by stopping.",
        "Optimizer steps taken, and what the stopped trials had left of their budget.",
    )


def size_gaps(bests: Sequence[Against]) -> Plot | None:
    """The gap to full precision in per cent against the adapter's bytes, with intervals."""
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
            for each in bests
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
