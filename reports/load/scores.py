"""The losses of a trial's examples, read from its eval.parquet or test.parquet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bitlora.files.record import TRIALS
from reports.load.baseline import read_scores
from reports.load.sweep import Sweep


def load_scores(folder: Path, trial_id: str, name: str) -> pd.DataFrame | None:
    """A trial's eval.parquet or test.parquet (`reports.load.baseline.read_scores`)."""
    return read_scores(folder / TRIALS / trial_id / name)


def scores_of(sweep: Sweep, name: str) -> Callable[[dict[str, Any]], dict[int, pd.DataFrame]]:
    """Reads the scores of configurations, rows with their `trials`: eval.parquet or test.parquet of these, by seed."""
    return by_seed(sweep, lambda trial: load_scores(sweep.folder, trial, name))


def by_seed(
    sweep: Sweep, load: Callable[[str], pd.DataFrame | None]
) -> Callable[[dict[str, Any]], dict[int, pd.DataFrame]]:
    """Reads what `load` gives of the trials of configurations, by seed; of each trial once."""
    seeds = sweep.trials.set_index("trial_id")["config.seed"]
    read: dict[str, pd.DataFrame | None] = {}

    def scores(row: dict[str, Any]) -> dict[int, pd.DataFrame]:
        found: dict[int, pd.DataFrame] = {}
        for number, trial in enumerate(row.get("trials", ())):
            if trial not in read:
                read[trial] = load(trial)
            seed = number if pd.isna(seeds[trial]) else int(seeds[trial])
            if (table := read[trial]) is not None:
                found.setdefault(seed, table)
        return found

    return scores
