"""What the base scored without an adapter, as the sweep's folder has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd

from bitlora.files.baseline import BASE, read_baseline
from bitlora.files.record import EVAL, RECORD, TEST, TRIALS
from reports.load.folder import FolderReader
from reports.load.values import finite

COLUMNS: Final = ("example_id", "loss", "tokens")


@dataclass(frozen=True, slots=True)
class BareLoss:
    """The base without an adapter on one split."""

    loss: float
    """Nats per completion token."""
    scores: pd.DataFrame
    """Of each example, as a trial's (`reports.load.scores`)."""


@dataclass(frozen=True, slots=True)
class BareBase:
    """The base without an adapter."""

    eval: BareLoss
    test: BareLoss | None
    """None where there is no test split, or its scores cannot be used."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The spec's `metrics` on the eval split and on its sets."""


def load_baseline(reader: FolderReader, trials: Sequence[Path]) -> BareBase | None:
    """What `base/` holds, if its examples are those of `trials`, which are their folders; else that is noted. None: there
    is nothing to be used, as in all sweeps of before."""
    folder = reader.root / BASE
    if not folder.exists():
        return None
    try:
        record = read_baseline(folder)
    except (OSError, ValueError) as error:
        reader.note_error(folder / RECORD, error)
        return None
    found = _split(reader, trials, folder / EVAL, record.eval_loss)
    test = None if record.test_loss is None else _split(reader, trials, folder / TEST, record.test_loss)
    given = record.metrics if isinstance(record.metrics, dict) else {}
    numbers = {str(name): number for name, value in given.items() if (number := finite(value)) is not None}
    return None if found is None else BareBase(found, test, numbers)


def _split(reader: FolderReader, trials: Sequence[Path], path: Path, told: object) -> BareLoss | None:
    loss = finite(told)
    table = read_scores(path)
    if loss is None or table is None:
        reader.note(path, ": cannot be read" if table is None else f": the record's loss of it is {told}")
        return None
    for trial in trials:
        other = read_scores(trial / path.name)
        if other is not None:
            mine, theirs = _examples(table), _examples(other)
            if path.name == TEST and theirs.items() < mine.items():  # it is confirmed on fewer rows than there are
                table = table[table["example_id"].isin(theirs.keys())].reset_index(drop=True)
                return BareLoss(float(table["loss"].sum() / table["tokens"].sum()), table)
            if not theirs.items() <= mine.items():  # of one that was stopped it may be some
                reader.note(path, f": other examples than those of {TRIALS}/{trial.name}; the base's loss is left out")
                return None
            break
    return BareLoss(loss, table)


def _examples(table: pd.DataFrame) -> dict[str, int]:
    return dict(zip(table["example_id"], table["tokens"], strict=True))


def read_scores(path: Path) -> pd.DataFrame | None:
    """An eval.parquet or test.parquet: `example_id`, `loss` (nats, summed), `tokens`, and `bytes` and `group` (what
    examples belong together) where it has them. None where there is none that can be read."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):  # pyarrow's errors are among these
        return None
    columns = [column for column in (*COLUMNS, "bytes", "group") if column in frame]
    return frame[columns] if tuple(columns[:3]) == COLUMNS else None
