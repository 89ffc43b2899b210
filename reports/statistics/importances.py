"""Which axes of the search space mattered, and which no more than chance would have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from reports.inference.divergence import STEPS, GridAxis, best_of, by_chance, divergence, on_range
from reports.inference.steps import CONFIDENCE
from reports.statistics.comparable import plain_value

FEWEST: Final = 30
"""Trials from which on an axis that makes nine tenths of all differences is told from chance in six of ten sweeps."""
BEST: Final = 5
"""Trials that count as the best, at least; else the best tenth, as Optuna has it."""


@dataclass(frozen=True, slots=True)
class Importances:
    """What sets the best trials apart from all of them."""

    shares: pd.DataFrame
    """`axis`, `importance` (0 to 1, summing to 1), the largest first, `chance` (what it would be at most if the axis did
    nothing: in 95 % of such sweeps no axis passes it), `told` (whether it is above); empty where trials are too few."""
    used: int
    """Trials it is over: those at equal budget."""
    of: int

    @property
    def best(self) -> int:
        """How many of them count as the best."""
        return max(BEST, math.ceil(self.used / 10))


def importances(equal: pd.DataFrame, begun: int, varying: Sequence[str], space: dict[str, Any]) -> Importances:
    """PED-ANOVA (arXiv 2304.10255), Optuna's default, over trials at equal budget: how far each axis among the best
    is from what it is among all; held against what it is when it has been shuffled over the trials. An axis whose range
    hangs on another is shuffled within the trials that have the same value there. The seed is no axis of this.

    Args:
        equal: those trials, with their eval loss.
        begun: trials of the search that were trained, however they ended.
        space: the spec's search space, as plain data.
    """
    columns = ["axis", "importance", "chance", "told"]
    nothing = Importances(pd.DataFrame(columns=columns), len(equal), begun)
    found: dict[str, GridAxis] = {}
    for axis in varying:
        if axis == "seed" or f"config.{axis}" not in equal:
            continue
        values = equal[f"config.{axis}"].dropna()
        if len(values) == len(equal) and values.nunique() > 1:
            found[axis] = _axis(equal, axis, space.get(axis))
    if len(equal) < FEWEST or not found or equal["eval_loss"].nunique() < 2:
        return nothing
    best = best_of(equal["eval_loss"].to_numpy(dtype=float), nothing.best)
    held = {axis: divergence(cells, best) for axis, cells in found.items()}
    total = sum(held.values())
    if not total > 0:
        return nothing
    lines = []
    for axis, cells in found.items():
        limit = float(np.quantile(by_chance(cells, best), CONFIDENCE ** (1 / len(found))))
        lines.append((axis, held[axis] / total, limit / total, held[axis] > limit))
    shares = pd.DataFrame(lines, columns=columns)
    return Importances(shares.sort_values(["importance", "axis"], ascending=[False, True]), len(equal), begun)


def _axis(equal: pd.DataFrame, axis: str, domain: object) -> GridAxis:
    """Over the values that there are; in logarithms where the spec says so."""
    values = equal[f"config.{axis}"]
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    domains, branches = [domain], None
    if isinstance(domain, dict) and "by" in domain:
        domains = [each for key, each in domain.items() if key != "by"]
        if f"config.{domain['by']}" in equal:
            codes = pd.factorize(equal[f"config.{domain['by']}"].astype(str))[0]
            branches = np.asarray(codes, dtype=np.int64)
    if all(isinstance(each, list) for each in domains) or not numbers:
        choices = sorted({plain_value(each) for each in values}, key=str)
        cells = np.array([choices.index(plain_value(each)) for each in values], dtype=np.int64)
        return GridAxis(cells, len(choices), False, branches)
    at = values.to_numpy(dtype=float)
    log = at.min() > 0 and any(isinstance(each, dict) and each.get("log") is True for each in domains)
    return GridAxis(on_range(np.log(at) if log else at), STEPS, True, branches)
