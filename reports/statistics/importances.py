"""Which axes of the search space mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from reports.statistics.comparable import plain_value

FEWEST: Final = 10
"""Trials below which importances would be read out of nothing."""
BEST: Final = 5
"""Trials that count as the best, at least; else the best tenth, as Optuna has it."""


@dataclass(frozen=True, slots=True)
class Importances:
    """What sets the best trials apart from all of them."""

    shares: pd.DataFrame
    """`axis`, `importance` (0 to 1, summing to 1), the largest first; empty where there are too few trials to say."""
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
                params = {axis: plain_value(row[f"config.{axis}"]) for axis in distributions}
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
        return CategoricalDistribution(sorted({plain_value(each) for each in values}, key=str))
    low, high = float(values.min()), float(values.max())
    log = any(isinstance(each, dict) and each.get("log") is True for each in domains)
    return FloatDistribution(low, high, log=low > 0 and log)
