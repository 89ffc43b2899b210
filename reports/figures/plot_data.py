"""What figures do to their data before they draw it: drop what cannot be drawn, set aside what would squash the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

OUTLIER: Final = 4.0
"""Losses further above the usual ones than this many times their range may leave the axes."""


def tidy(frame: pd.DataFrame, needed: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """`frame` with these columns as floats, without the rows where one of `needed` is missing or not finite."""
    found = frame.reset_index(drop=True)
    for name in (*needed, *optional):
        found[name] = numbers(found[name])
    if "quantizer" in found:
        found["quantizer"] = found["quantizer"].astype(str)
    return found.dropna(subset=list(needed))


def numbers(values: pd.Series) -> pd.Series:
    """`values` as floats; NaN is what is missing, no number, or not finite (past 1e100 no axis could hold it)."""
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype="float64", na_value=math.nan)
    return pd.Series(np.where(np.abs(found) < 1e100, found, math.nan), values.index)


def highest(values: pd.Series, lowest: float) -> float:
    """The largest of `values` that is not far above the lower half of them; of them all, unless those far above would
    squash the others into a small part of the axis."""
    usual = float(values.quantile(0.5, interpolation="lower"))
    near = float(values[values <= usual + OUTLIER * (usual - lowest)].max())
    most = float(values.max())
    return near if most - lowest > OUTLIER * (near - lowest) else most


def outliers(points: pd.DataFrame, kept: float = -math.inf) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows whose eval loss a figure shows, and those far above them; up to `kept` none is."""
    inside = points["eval_loss"] <= max(kept, highest(points["eval_loss"], points["eval_loss"].min()))
    return points[inside], points[~inside]


@dataclass(frozen=True, slots=True)
class Panel:
    """Where the trials lie on one axis of the search space."""

    name: str
    log: bool
    x: pd.Series
    """NaN: nowhere."""
    categories: tuple[str, ...] = ()
    """Those at 0, 1, …, where the axis is not of numbers."""

    @classmethod
    def of(cls, points: pd.DataFrame, name: str, log: bool) -> Panel:
        values = points[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            x = numbers(values)
            return cls(name, log, x.where(x > 0) if log else x)
        words = values.dropna().astype(str)
        categories = tuple(sorted(set(words)))
        places = words.map({word: float(place) for place, word in enumerate(categories)})
        return cls(name, False, places.reindex(points.index), categories)


def signed(value: float, digits: int) -> str:
    """A difference with its sign, a true minus; zero has none."""
    words = f"{value:+.{digits}f}" if abs(value) < 1e6 else f"{value:+.3g}"
    return words.replace("-", "−") if value else "0"


def decimals(low: float, high: float) -> int:
    """Digits after the point that tell values apart between two limits: three that count."""
    return min(8, max(0, 3 - math.ceil(math.log10(high - low))))
