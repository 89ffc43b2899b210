"""A sweep's folder → one tidy table. What is missing, cut short or nonsense on disk is noted; no trial is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bitlora.files.record import TRIALS, Record
from reports.load.baseline import BareBase, load_baseline
from reports.load.chosen import ChosenDesign, load_chosen
from reports.load.folder import SPEC, FolderReader
from reports.load.soup import Soup, load_soup
from reports.load.values import as_text, finite, mapping

COLUMNS: Final = {
    "trial_id": "str",
    "status": "str",
    "reason": "str",
    "eval_loss": "float64",
    "test_loss": "float64",
    "steps": "Int64",
    "budget": "Int64",
    "tokens": "Int64",
    "seconds": "float64",
    "adapter_params": "Int64",
    "adapter_bytes": "Int64",
}
CURVES: Final = ("trial_id", "step", "train_loss", "eval_loss", "learning_rate")
MEASURED: Final = ("trial_id", "step", "metric", "value")
DistinctValues = dict[str, tuple[str, ...]]
"""Key → the distinct values that the records have for it, as text. More than one: the trials differ."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep's folder holds."""

    folder: Path
    name: str
    spec: dict[str, Any]
    """sweep.yaml; {} where there is none that can be read."""
    spec_hash: str
    """16 hex digits over the bytes of sweep.yaml; empty where there is none."""
    runs: tuple[dict[str, Any], ...]
    """The lines of runs.jsonl (`sweeps.driver.provenance.Run`)."""
    data_files: tuple[dict[str, Any], ...]
    """What the folder notes of each data file (`sweeps.driver.kept.KeptFile`); none of sweeps without, or of before."""
    trials: pd.DataFrame
    """A row per trial, however it ended, by trial_id: `COLUMNS`, then `config.<key>` for each configuration key.

    `eval_loss` and `test_loss` in nats per completion token, NaN where there is none that is finite; `budget` is
    `config.steps`. Where trials were stopped before all rows were scored: `eval_rows`, and `part_loss` over those; their
    `eval_loss` is NaN. Where all have their best evaluation, `kept` says so: `steps` is then that of it, and a trial that
    has completed may have taken more."""
    curves: pd.DataFrame
    """A row per evaluation: `trial_id`, `step`, `train_loss`, `eval_loss`, `learning_rate`, by trial_id and step."""
    measured: pd.DataFrame
    """A row per evaluation and metric: `trial_id`, `step`, `metric`, `value`."""
    bare: BareBase | None
    """What the base scored without an adapter; None where nobody scored it, or that cannot be used."""
    soup: Soup | None
    """The average of its finalists; None where nobody averaged them."""
    chosen: ChosenDesign | None
    """Seeds and rows of its confirmation, where they were chosen; None where the spec says them."""
    base: DistinctValues
    data: DistinctValues
    versions: DistinctValues
    problems: tuple[str, ...]
    """A line for each thing that could not be read or used: its path inside the folder, then what is wrong."""
    steered: tuple[dict[str, Any], ...] = ()
    """The lines of steered.jsonl (`bitlora.files.record.SteeringAct`): what a person did to it."""
    schedules: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of each trial whose values moved under way, what held before, oldest first (`bitlora.files.record.Record`)."""

    @property
    def longer(self) -> set[str]:
        """The trials that a person gave more steps: a stage of theirs went by a smaller budget than they have."""
        budgets = dict(zip(self.trials["trial_id"], self.trials["budget"], strict=True))
        return {
            trial
            for trial, stages in self.schedules.items()
            if any(stage.get("steps") not in (None, budgets.get(trial)) for stage in stages)
        }

    @property
    def warm_started(self) -> set[str]:
        """The trials that began with another's weights. In records of before a number there is another thing."""
        named = zip(self.trials["trial_id"], self.trials["config.warm_start"], strict=True)
        return {trial for trial, parent in named if isinstance(parent, str)}

    def spent(self, key: str) -> float:
        """`seconds` or `worker_seconds`, summed over the runs of the sweep that say it."""
        return sum(found for run in self.runs if (found := finite(run.get(key))) is not None)


def load_sweep(folder: Path) -> Sweep:
    """Everything that is on disk about the trials in `folder`.

    Raises:
        ValueError: `folder` is no sweep's folder; one line that names it.
    """
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = get_close_matches(folder.name, beside, 1)
        raise ValueError(f"{folder}: no such folder" + (f"; did you mean {folder.parent / near[0]}?" if near else ""))
    if not (folder / TRIALS).is_dir() and not (folder / SPEC).is_file():
        raise ValueError(f"{folder}: not a sweep's folder: it has neither {SPEC} nor {TRIALS}/")
    reader = FolderReader(folder)
    spec = reader.spec()
    trials = reader.trial_folders()
    kept = {"kept": "best"} if mapping(spec, "train").get("keep") == "best" else {}
    rows = [reader.trial(path) | kept for path in trials]
    name = spec.get("name")
    return Sweep(
        folder=folder,
        name=as_text(name if isinstance(name, str) and name.strip() else folder.resolve().name),
        spec=spec,
        spec_hash=reader.spec_hash,
        runs=reader.runs(),
        data_files=reader.data_files(),
        trials=_frame(rows),
        curves=pd.DataFrame(reader.curves, columns=CURVES),
        measured=pd.DataFrame(reader.measured, columns=MEASURED),
        bare=load_baseline(reader, trials),
        soup=load_soup(reader),
        chosen=load_chosen(reader),
        base=_distinct(record.base for record in reader.records),
        data=_data(reader.records),
        versions=_distinct(record.versions for record in reader.records),
        steered=reader.steered(),
        problems=tuple(reader.problems),
        schedules={record.trial_id: stages for record in reader.records if (stages := _stages(record.schedule))},
    )


def _stages(schedule: object) -> list[dict[str, Any]]:
    return [stage for stage in schedule if isinstance(stage, dict)] if isinstance(schedule, list) else []


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table whose columns keep their types where values are missing (a rank stays an integer)."""
    # Everything groups by these, so their columns are there even if no trial says what it had.
    named = ("config.quantizer", "config.seed", "config.confirms", "config.warm_start")
    keys = dict.fromkeys([*named, *(key for row in rows for key in row if key not in COLUMNS)])
    fixed = {key: pd.Series([row.get(key) for row in rows], dtype=dtype) for key, dtype in COLUMNS.items()}
    config = {key: pd.Series([row.get(key) for row in rows], dtype=object).convert_dtypes() for key in keys}
    return pd.DataFrame(fixed | config)


def _data(records: Sequence[Record]) -> DistinctValues:
    """Of the data. Trials that ended before their sweep was to be confirmed know of no test rows: the others say."""
    found = _distinct(record.data for record in records)
    counts = found.get("test_rows", ())
    return found | ({"test_rows": tuple(each for each in counts if each != "0")} if len(counts) > 1 else {})


def _distinct(mappings: Iterable[object]) -> DistinctValues:
    found: dict[str, dict[str, None]] = {}
    for each in mappings:
        for key, value in each.items() if isinstance(each, dict) else ():
            if value not in (None, "", [], {}) and value == value:  # a NaN is no value either
                found.setdefault(key, {})[as_text(value)] = None
    return {key: tuple(values) for key, values in found.items()}
