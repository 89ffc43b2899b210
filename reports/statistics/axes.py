"""What varies between the trials of a sweep, and what they all share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from bitlora.config.trial import AXES

DERIVED: Final = ("steps", "eval_every", "micro_batch", "confirms", "confirm_rows", "stages", "warm_start")
"""Keys of a configuration that are no axis: they follow from others, or change no result."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The keys of the trials' configurations."""

    varying: tuple[str, ...]
    """Those that differ between trials, or that the spec's search space varies."""
    fixed: dict[str, Any]
    """Those that all trials share, with their value."""


def axes(trials: pd.DataFrame, space: Iterable[str]) -> Axes:
    """What varies and what is fixed over `trials`; `space`: the keys that the spec's search space varies."""
    keys = [str(column).removeprefix("config.") for column in trials.columns if str(column).startswith("config.")]
    keys.sort(key=lambda key: (AXES.index(key) if key in AXES else len(AXES), key))
    named = set(space)
    varying, fixed = [], {}
    for key in keys:
        found = trials[f"config.{key}"].dropna()
        if key not in DERIVED and (key in named or len({str(value) for value in found}) > 1):
            varying.append(key)
        elif found.nunique() == 1:
            fixed[key] = found.tolist()[0]
    return Axes(tuple(varying), fixed)
