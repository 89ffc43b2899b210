"""How the trials ended, and what those that ended badly have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from bitlora.files.record import STATUSES
from reports.document.cells import value
from reports.load.folder import UNKNOWN
from reports.statistics.comparable import plain_value, rows

BAD: Final = ("diverged", "failed", "interrupted", UNKNOWN)
ENDED_BADLY: Final = 0.5
"""What trials have in common says something where at most this share of the others has it too."""


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
                values, also = (
                    value(axis, plain_value(mine.iloc[0])),
                    int((theirs.astype(str) == str(mine.iloc[0])).sum()),
                )
            elif pd.api.types.is_numeric_dtype(mine) and pd.api.types.is_numeric_dtype(theirs):
                low, high = mine.min(), mine.max()
                values = f"{value(axis, plain_value(low))} to {value(axis, plain_value(high))}"
                also = int(((theirs >= low) & (theirs <= high)).sum())
            else:
                continue
            if also <= ENDED_BADLY * len(others):
                found.append(Shared(status, len(bad), axis, values, also, len(others)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Ending:
    """The trials that ended the same way for the same reason."""

    status: str
    reason: str
    trial_ids: tuple[str, ...]


def endings(trials: pd.DataFrame) -> tuple[Ending, ...]:
    """How the trials ended, and why: by status in the record's order, then the commonest reason first."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in rows(trials[["trial_id", "status", "reason", "eval_loss"]]):
        lossless = row["status"] == "completed" and pd.isna(row["eval_loss"])
        reason = row["reason"] or ("without a usable eval loss: not ranked" if lossless else "")
        grouped.setdefault((row["status"], reason), []).append(row["trial_id"])
    found = [Ending(status, reason, tuple(ids)) for (status, reason), ids in grouped.items()]
    order: dict[str, int] = {status: place for place, status in enumerate(STATUSES)}
    return tuple(sorted(found, key=lambda e: (order.get(e.status, len(order)), -len(e.trial_ids), e.reason)))
