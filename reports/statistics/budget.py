"""What was trained, and what stopping saved."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bitlora.files.record import STATUSES
from reports.load.folder import UNKNOWN

BUDGET: Final = ["status", "trials", "steps", "saved", "tokens", "seconds", "saved_seconds"]


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
