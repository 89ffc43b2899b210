"""Which configurations may be compared with which. Everything else is listed, never ranked.

A configuration is everything but the seed. Trials that differ in their seed alone are one, with the mean of their losses
and its standard error; of two trials that are equal to the seed, the first counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from reports.load.sweep import Sweep
from reports.load.values import ids_in_order
from reports.statistics.paired import Scores

Row = dict[str, Any]
"""A trial or a configuration by column: of `Sweep.trials`, and for a configuration `error` and `seeds`."""
ScoresOf = Callable[[Row], Scores]
"""A configuration -> its scores on the examples that decide, by seed; {} where there are none to be had."""
APART: Final = ("config.seed", "config.confirms")
"""Columns in which trials of one configuration may differ."""


@dataclass(frozen=True, slots=True)
class Comparable:
    """The trials with a finite eval loss that completed or were pruned, by what they may be compared with."""

    ranked: pd.DataFrame
    """Configurations out of the search whose trials completed at the largest full budget that any trial completed which was
    not given more steps: by eval loss, then trial_id; `place` from 1, a tie shares its place. `trial_id` is the first
    trial's, which gives the configuration its `name`; `trials` has all, `seeds` counts their seeds, `error` is the standard
    error over them (NaN with one)."""
    other: pd.DataFrame
    """Completed with another budget, or short of their own, or begun with another trial's weights: by steps downwards, eval
    loss, trial_id."""
    pruned: pd.DataFrame
    """Pruned: by steps downwards, eval loss (NaN last), trial_id."""
    confirmed: pd.DataFrame
    """As `ranked`, of the trials that confirm: by `test_loss`, which `error` is of; `eval_loss` is their mean too, and
    `name` the trial of the search whose configuration it is."""

    @property
    def contest(self) -> pd.DataFrame:
        """What the verdict is about, with the loss that decides as `loss`: the confirmed, where any is."""
        confirmed = len(self.confirmed) > 0
        frame = self.confirmed if confirmed else self.ranked
        return frame.assign(loss=frame["test_loss" if confirmed else "eval_loss"])


def comparable(sweep: Sweep) -> Comparable:
    """Sort the trials of `sweep` by what they may be compared with. Diverged, failed, interrupted and unknown trials, and
    those without a finite eval loss, are in none (a pruned one is listed all the same)."""
    trials = sweep.trials
    completed = trials[(trials["status"] == "completed") & trials["eval_loss"].notna()]
    full = (completed["steps"] == completed["budget"]).fillna(False).astype(bool) | ("kept" in completed)
    as_searched = full & ~completed["trial_id"].isin(sweep.longer)
    budget = completed.loc[as_searched if as_searched.any() else full, "budget"].max()
    equal = full & (completed["budget"] == budget).fillna(False).astype(bool)
    confirming, warm = completed["config.confirms"].notna(), completed["trial_id"].isin(sweep.warm_started)
    confirmed = configurations(completed[equal & confirming & completed["test_loss"].notna()], "test_loss")
    return Comparable(
        ranked=configurations(completed[equal & ~confirming & ~warm], "eval_loss"),
        other=by_progress(completed[(~equal | warm) & ~confirming]),
        pruned=by_progress(trials[trials["status"] == "pruned"]),
        confirmed=confirmed,
    )


def configurations(trials: pd.DataFrame, loss: str) -> pd.DataFrame:
    """`trials` as configurations, ranked by the mean of the column `loss` (`Comparable.ranked`)."""
    keys = [c for c in trials.columns if str(c).startswith("config.") and c not in APART]
    trials = trials.sort_values("trial_id", key=ids_in_order, ignore_index=True)
    # As text: a value that is missing, or of another type, is a value too.
    same = pd.Series(["\0".join(map(str, held)) for held in trials[keys].itertuples(index=False)], dtype=str)
    groups: dict[str, list[Row]] = {}
    for key, row in zip(same, rows(trials), strict=True):
        groups.setdefault(key, []).append(row)
    found = []
    for group in groups.values():
        by_seed: dict[str, Row] = {}
        for row in group:
            by_seed.setdefault(str(row["config.seed"]), row)
        once = list(by_seed.values())
        first = dict(once[0])
        first |= {column: float(pd.Series([r[column] for r in once]).mean()) for column in {"eval_loss": 0, loss: 0}}
        error = float(pd.Series([row[loss] for row in once]).std(ddof=1)) / math.sqrt(len(once))
        name = first["trial_id"] if pd.isna(first["config.confirms"]) else first["config.confirms"]
        trial_ids = tuple(row["trial_id"] for row in group)
        found.append(first | {"name": name, "error": error, "seeds": len(once), "trials": trial_ids})
    columns = [*trials.columns, "name", "error", "seeds", "trials"]
    frame = pd.DataFrame(found, columns=columns)
    frame = frame.sort_values([loss, "trial_id"], key=ids_in_order, ignore_index=True)
    frame.insert(0, "place", frame[loss].rank(method="min").astype("Int64"))
    return frame


def by_progress(trials: pd.DataFrame) -> pd.DataFrame:
    """`trials` by steps downwards, then eval loss, then trial_id; missing values last."""
    order = ["steps", "eval_loss", "trial_id"]
    up = [False, True, True]
    return trials.sort_values(order, ascending=up, na_position="last", key=ids_in_order, ignore_index=True)


def pareto(frame: pd.DataFrame, costs: Sequence[str]) -> pd.Series[bool]:
    """Which rows no other is at least as good as in all of `costs` (less is better) and better in one."""
    values = frame[list(costs)].to_numpy(dtype=float)
    front = [not bool(((values <= row).all(axis=1) & (values < row).any(axis=1)).any()) for row in values]
    return pd.Series(front, index=frame.index, dtype=bool)


def rows(frame: pd.DataFrame) -> tuple[Row, ...]:
    """The rows of `frame` as mappings from column to value."""
    return tuple({str(key): value for key, value in row.items()} for row in frame.to_dict("records"))


def plain_value(anything: Any) -> Any:
    """A value out of a table as Python has it: numpy's numbers as numbers."""
    return anything.item() if hasattr(anything, "item") else anything
