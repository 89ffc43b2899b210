"""Which trials may be compared with which, and what the comparison says. Everything else is listed, never ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.paired import Interval, paired

Row = dict[str, Any]
"""A trial: a row of `reports.load.Sweep.trials` by column."""


@dataclass(frozen=True, slots=True)
class Comparable:
    """The trials with a finite eval loss that completed or were pruned, by what they may be compared with."""

    ranked: pd.DataFrame
    """Completed at the largest full budget that any trial completed: by eval loss, then trial_id; `place` from 1, a tie
    shares its place."""
    other: pd.DataFrame
    """Completed with a smaller budget, or short of their own: by steps downwards, eval loss, trial_id."""
    pruned: pd.DataFrame
    """Pruned: by steps downwards, eval loss (NaN last), trial_id."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What won and by how much. A difference of single runs: it says nothing about another seed."""

    best: tuple[Row, ...]
    """The ranked trials with the lowest eval loss: none, one, or several that tie to the last bit."""
    rival: Row | None
    """The best trial of the next quantizer; where there is only one quantizer, the next trial; else None."""
    across: bool
    """Whether the rival has another quantizer."""
    gap: float
    """Nats per completion token from best to rival; 0 without a rival."""
    percent: float | None
    """The gap in per cent of the rival's eval loss; None without a rival, or where that loss is 0."""
    interval: Interval | None = None
    """Of the gap, over the eval examples of both; None where they cannot be paired."""

    @property
    def tied(self) -> bool:
        """The interval holds zero: on other examples of the kind, either could be ahead."""
        return self.interval is not None and not self.interval.decided


def comparable(trials: pd.DataFrame) -> Comparable:
    """Sort `trials` (`reports.load.Sweep.trials`) by what they may be compared with. Diverged, failed, interrupted and
    unknown trials, and those without a finite eval loss, are in none (a pruned one is listed all the same)."""
    completed = trials[(trials["status"] == "completed") & trials["eval_loss"].notna()]
    full = (completed["steps"] == completed["budget"]).fillna(False).astype(bool)
    budget = completed.loc[full, "budget"].max()
    equal = full & (completed["budget"] == budget).fillna(False).astype(bool)
    ranked = completed[equal].sort_values(["eval_loss", "trial_id"], ignore_index=True)
    ranked.insert(0, "place", ranked["eval_loss"].rank(method="min").astype("Int64"))
    return Comparable(
        ranked=ranked, other=by_progress(completed[~equal]), pruned=by_progress(trials[trials["status"] == "pruned"])
    )


def by_progress(trials: pd.DataFrame) -> pd.DataFrame:
    """`trials` by steps downwards, then eval loss, then trial_id; missing values last."""
    order = ["steps", "eval_loss", "trial_id"]
    return trials.sort_values(order, ascending=[False, True, True], na_position="last", ignore_index=True)


Scores = Callable[[str], pd.DataFrame | None]
"""trial_id -> its eval.parquet, or None (`reports.load.load_eval`)."""


def verdict(ranked: pd.DataFrame, scores: Scores = lambda trial_id: None) -> Verdict:
    """What won among `ranked` (`Comparable.ranked`)."""
    if ranked.empty:
        return Verdict((), None, False, 0.0, None)
    best = ranked[ranked["place"] == 1]
    rivals = ranked[~ranked["config.quantizer"].isin(best["config.quantizer"])]
    across = not rivals.empty
    if not across:
        rivals = ranked[ranked["place"] > 1]
    if rivals.empty:
        return Verdict(rows(best), None, False, 0.0, None)
    rival = rows(rivals.head(1))[0]
    gap = rival["eval_loss"] - best["eval_loss"].iloc[0]
    percent = 100 * gap / rival["eval_loss"] if rival["eval_loss"] else None
    interval = paired(scores(str(best["trial_id"].iloc[0])), scores(str(rival["trial_id"])))
    return Verdict(rows(best), rival, across, float(gap), percent, interval)


def rows(frame: pd.DataFrame) -> tuple[Row, ...]:
    """The rows of `frame` as mappings from column to value."""
    return tuple({str(key): value for key, value in row.items()} for row in frame.to_dict("records"))
