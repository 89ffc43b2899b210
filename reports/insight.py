"""What a sweep says beyond its ranking: which axes mattered, what stopping saved, what the trials that failed share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from bitlora.record import STATUSES
from reports.cells import value
from reports.load import UNKNOWN

FEWEST: Final = 10
"""Trials below which importances would be read out of nothing."""
BEST: Final = 5
"""Trials that count as the best, at least; else the best tenth, as Optuna has it."""
BAD: Final = ("diverged", "failed", "interrupted", UNKNOWN)
BUDGET: Final = ["status", "trials", "steps", "saved", "tokens", "seconds", "saved_seconds"]
ENDED_BADLY: Final = 0.5
"""What trials have in common says something where at most this share of the others has it too."""


@dataclass(frozen=True, slots=True)
class Importances:
    """What sets the best trials apart from all of them."""

    shares: pd.DataFrame
    """`axis`, `importance` (0 to 1, summing to 1), the largest first; empty where nothing could be said."""
    used: int
    """Trials it is over: those at equal budget."""
    of: int

    @property
    def best(self) -> int:
        """How many of them count as the best."""
        return max(BEST, math.ceil(self.used / 10))


def importances(equal: pd.DataFrame, begun: int, varying: Sequence[str], space: dict[str, Any]) -> Importances:
    """PED-ANOVA (arXiv 2304.10255), Optuna's default, over trials at equal budget: how far each axis among the best
    is from what it is among all. The seed is no axis of this.

    Args:
        equal: those trials, with their eval loss.
        begun: trials of the search, however they ended.
        space: the spec's search space, as plain data.
    """
    import optuna

    nothing = Importances(pd.DataFrame(columns=["axis", "importance"]), len(equal), begun)
    distributions = {}
    for axis in varying:
        if axis == "seed" or f"config.{axis}" not in equal:
            continue
        values = equal[f"config.{axis}"].dropna()
        if len(values) == len(equal) and values.nunique() > 1:
            distributions[axis] = _distribution(values, space.get(axis))
    if len(equal) < FEWEST or not distributions or equal["eval_loss"].nunique() < 2:
        return nothing
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study()
            for row in equal.to_dict("records"):
                params = {axis: _plain(row[f"config.{axis}"]) for axis in distributions}
                study.add_trial(
                    optuna.trial.create_trial(params=params, distributions=distributions, value=row["eval_loss"])
                )
            quantile = nothing.best / len(equal)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials for its quantile
        return nothing
    finally:
        optuna.logging.set_verbosity(before)
    shares = pd.DataFrame({"axis": list(found), "importance": list(found.values())})
    if not shares["importance"].sum() > 0:
        return nothing
    return Importances(shares.sort_values(["importance", "axis"], ascending=[False, True]), len(equal), begun)


def _distribution(values: pd.Series[Any], domain: object) -> Any:
    """Over the values that there are; in logarithms where the spec says so."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    domains: list[object] = [domain]
    if isinstance(domain, dict) and "by" in domain:
        domains = [each for key, each in domain.items() if key != "by"]
    if all(isinstance(each, list) for each in domains) or not numbers:
        return CategoricalDistribution(sorted({_plain(each) for each in values}, key=str))
    low, high = float(values.min()), float(values.max())
    log = any(isinstance(each, dict) and each.get("log") is True for each in domains)
    return FloatDistribution(low, high, log=low > 0 and log)


def _plain(anything: Any) -> Any:
    return anything.item() if hasattr(anything, "item") else anything


def budget(trials: pd.DataFrame) -> pd.DataFrame:
    """What was trained and what stopping saved, by status: `status`, `trials`, `steps`, `saved`, `tokens`, `seconds`,
    `saved_seconds`.

    Saved: the steps that pruned trials had left of their budget, and the time that these would have taken at the pace of
    those before. Seconds are those in a trial's slot, where several trials are trained at once.
    """
    lines = []
    for status in (*STATUSES, UNKNOWN):
        part = trials[trials["status"] == status]
        if part.empty:
            continue
        left = (part["budget"] - part["steps"]).clip(lower=0).fillna(0).astype(float)
        pace = part["seconds"] / part["steps"].astype(float)
        spared = (left * pace)[pace.notna() & (part["steps"] > 0).fillna(False)]
        lines.append(
            {
                "status": status,
                "trials": len(part),
                "steps": int(part["steps"].fillna(0).sum()),
                "saved": int(left.sum()) if status == "pruned" else 0,
                "tokens": int(part["tokens"].fillna(0).sum()),
                "seconds": float(part["seconds"].fillna(0).sum()),
                "saved_seconds": float(spared.sum()) if status == "pruned" else 0.0,
            }
        )
    return pd.DataFrame(lines, columns=BUDGET)


@dataclass(frozen=True, slots=True)
class Shared:
    """What trials that ended badly have in common."""

    status: str
    trials: int
    axis: str
    values: str
    others: int
    """Trials of the sweep that ended otherwise and have it too."""
    of: int


def in_common(trials: pd.DataFrame, varying: Sequence[str]) -> tuple[Shared, ...]:
    """For each way to end badly that at least two trials share: the values that all of them have and few others do."""
    found = []
    for status in BAD:
        bad, others = trials[trials["status"] == status], trials[trials["status"] != status]
        if len(bad) < 2 or others.empty:
            continue
        for axis in (axis for axis in varying if f"config.{axis}" in trials):
            mine, theirs = bad[f"config.{axis}"].dropna(), others[f"config.{axis}"].dropna()
            if len(mine) < len(bad) or theirs.empty:
                continue
            if mine.nunique() == 1:
                said, also = value(axis, _plain(mine.iloc[0])), int((theirs.astype(str) == str(mine.iloc[0])).sum())
            elif pd.api.types.is_numeric_dtype(mine) and pd.api.types.is_numeric_dtype(theirs):
                low, high = mine.min(), mine.max()
                said = f"{value(axis, _plain(low))} to {value(axis, _plain(high))}"
                also = int(((theirs >= low) & (theirs <= high)).sum())
            else:
                continue
            if also <= ENDED_BADLY * len(others):
                found.append(Shared(status, len(bad), axis, said, also, len(others)))
    return tuple(found)
