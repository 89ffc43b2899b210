"""The soup of a sweep's finalists, as the sweep's folder has it: the average of their adapters, seed by seed, and what it
and they scored on the test split by one loop.

Written by `bitlora soup`: `soup/<seed>/adapter/` and `config.json` as a trial's, `test.parquet` of the soup,
`<trial_id>/test.parquet` of each that is in it, and last `soup/record.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bitlora.files.record import RECORD, TEST
from reports.load.baseline import read_scores
from reports.load.folder import FolderReader

SOUP: Final = "soup"
"""In the sweep's folder: the folder of all that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoupRecord:
    """A soup, as `soup/record.json` has it."""

    of: dict[str, dict[str, str]]
    """Finalist -> seed -> the trial that confirms it on that seed."""
    test_loss: dict[str, float]
    """`soup` and each finalist -> nats per completion token over the test split, a mean over the seeds."""
    base: dict[str, Any]
    """Its `model`, `quantization` and `revision`, and in which `dtype` and on which `device` all were scored."""
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Soup:
    """The average of finalists, and what it and they scored on the test split by one loop."""

    scores: dict[int, pd.DataFrame]
    """By seed, as a trial's (`reports.load.scores`)."""
    of: dict[str, dict[int, pd.DataFrame]]
    """Finalist -> the same of it."""


def load_soup(reader: FolderReader) -> Soup | None:
    """What `soup/` holds; None: there is nothing, or it cannot be used, which is noted."""
    folder = reader.root / SOUP
    if not folder.exists():
        return None
    try:
        record = SoupRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        seeds = sorted({int(seed) for trials in record.of.values() for seed in trials})
        own = {seed: _read(folder / str(seed) / TEST) for seed in seeds}
        of = {
            name: {int(seed): _read(folder / seed / trial / TEST) for seed, trial in trials.items()}
            for name, trials in record.of.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reader.note_error(folder / RECORD, error)
        return None
    return Soup(own, of) if own and of else None


def _read(path: Path) -> pd.DataFrame:
    found = read_scores(path)
    if found is None:
        raise ValueError(f"{path.name} of it cannot be read")
    return found
