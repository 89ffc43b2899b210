"""A sweep's folder → one tidy table. What is missing, cut short or nonsense on disk is said; no trial is dropped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bitlora.record import CONFIG, METRICS, RECORD, RUNS, TRIALS, Metrics, Record, read_metrics, read_record

SPEC: Final = "sweep.yaml"
UNKNOWN: Final = "unknown"
"""The status of a trial without a readable record: still running, or cut off."""

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

Found = dict[str, tuple[str, ...]]
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
    """The lines of runs.jsonl (`sweeps.provenance.Run`)."""
    trials: pd.DataFrame
    """A row per trial, however it ended, sorted by trial_id: `COLUMNS`, then `config.<key>` for each configuration key.

    `eval_loss` and `test_loss` in nats per completion token, NaN where there is none that is finite; `budget` is
    `config.steps`."""
    curves: pd.DataFrame
    """A row per evaluation: `trial_id`, `step`, `train_loss`, `eval_loss`, `learning_rate`, by trial_id and step."""
    base: Found
    data: Found
    versions: Found
    problems: tuple[str, ...]
    """A line for each thing that could not be read or used: its path inside the folder, then what is wrong."""

    def spent(self, key: str) -> float:
        """`seconds` or `worker_seconds`, summed over the runs of the sweep that say it."""
        return sum(found for run in self.runs if (found := _number(run.get(key))) is not None)


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
    reader = _Reader(folder)
    spec = reader.spec()
    rows = [reader.trial(path) for path in reader.trial_folders()]
    name = spec.get("name")
    return Sweep(
        folder=folder,
        name=_text(name if isinstance(name, str) and name.strip() else folder.resolve().name),
        spec=spec,
        spec_hash=reader.spec_hash,
        runs=reader.runs(),
        trials=_frame(rows),
        curves=pd.DataFrame(reader.curves, columns=CURVES),
        base=_distinct(record.base for record in reader.records),
        data=_distinct(record.data for record in reader.records),
        versions=_distinct(record.versions for record in reader.records),
        problems=tuple(reader.problems),
    )


def load_scores(folder: Path, trial_id: str, name: str) -> pd.DataFrame | None:
    """A trial's eval.parquet or test.parquet: `example_id`, `loss` (nats, summed), `tokens`, and `bytes` where it has that.

    None where there is none that can be read.
    """
    try:
        frame = pd.read_parquet(folder / TRIALS / trial_id / name)
    except (OSError, ValueError):  # pyarrow's errors are among these
        return None
    columns = [column for column in ("example_id", "loss", "tokens", "bytes") if column in frame]
    return frame[columns] if columns[:3] == ["example_id", "loss", "tokens"] else None


def scores_of(sweep: Sweep, name: str) -> Callable[[dict[str, Any]], dict[int, pd.DataFrame]]:
    """Reads the scores of configurations (`reports.stats.Row`): eval.parquet or test.parquet of their trials, by seed."""
    seeds = sweep.trials.set_index("trial_id")["config.seed"]
    read: dict[str, pd.DataFrame | None] = {}

    def scores(row: dict[str, Any]) -> dict[int, pd.DataFrame]:
        found: dict[int, pd.DataFrame] = {}
        for number, trial in enumerate(row.get("trials", ())):
            if trial not in read:
                read[trial] = load_scores(sweep.folder, trial, name)
            seed = number if pd.isna(seeds[trial]) else int(seeds[trial])
            if (table := read[trial]) is not None:
                found.setdefault(seed, table)
        return found

    return scores


@dataclass(slots=True)
class _Reader:
    """Reads a sweep's folder, and notes what cannot be read."""

    root: Path
    problems: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    curves: list[tuple[Any, ...]] = field(default_factory=list)
    spec_hash: str = ""

    def note(self, path: Path, what: str) -> None:
        self.problems.append(_text(f"{path.relative_to(self.root).as_posix()}{what}"))

    def note_error(self, path: Path, error: Exception) -> None:
        """Note `error`, whose message may open with `path`, which is not for print: it may be absolute."""
        what = str(error)
        if isinstance(error, FileNotFoundError):
            what = "missing"
        elif isinstance(error, OSError):
            what = f"cannot be read: {error.strerror}"
        self.note(path, what.removeprefix(str(path)) if what.startswith(f"{path}:") else f": {what}")

    def spec(self) -> dict[str, Any]:
        path = self.root / SPEC
        try:
            read = path.read_bytes()
            self.spec_hash = hashlib.sha256(read).hexdigest()[:16]
            spec = YAML(typ="safe", pure=True).load(read.decode("utf-8"))
        except MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            self.note(path, f"{line}: not YAML: {error.problem}")
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            self.note_error(path, error)
        else:
            if isinstance(spec, dict):
                return spec
            self.note(path, ": not a mapping of keys to values")
        return {}

    def runs(self) -> tuple[dict[str, Any], ...]:
        path = self.root / RUNS
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            return tuple(found for line in lines if isinstance(found := json.loads(line), dict))
        except (OSError, ValueError) as error:
            self.note_error(path, error)
            return ()

    def trial_folders(self) -> list[Path]:
        path = self.root / TRIALS
        if not path.is_dir():
            self.note(path, ": missing")
            return []
        # A hidden folder is a write that did not finish (`bitlora.record.write_folder`).
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def trial(self, folder: Path) -> dict[str, Any]:
        """The row of the trial in `folder`."""
        evaluations = self._metrics(folder)
        name = _text(folder.name)
        self.curves += [(name, *point) for line in evaluations if (point := _point(line))]
        try:
            record = read_record(folder)
        except FileNotFoundError:
            self.note(folder / RECORD, ": missing: the trial is still running, or was cut off")
            reason = "no record: still running, or cut off"
        except (OSError, ValueError) as error:
            self.note_error(folder / RECORD, error)
            reason = "its record cannot be read"
        else:
            self.records.append(record)
            return self._row(folder, record)
        row: dict[str, Any] = {"trial_id": _text(folder.name), "status": UNKNOWN, "reason": reason}
        if evaluations:
            last = evaluations[-1]
            row |= {"eval_loss": _number(last.eval_loss), "steps": _count(last.step), "tokens": _count(last.tokens)}
            row["seconds"] = _number(last.seconds)
        return row | _config_columns(self._config(folder))

    def _row(self, folder: Path, record: Record) -> dict[str, Any]:
        path = folder / RECORD
        if record.trial_id != folder.name:
            self.note(path, f": trial_id is {_text(record.trial_id)}; the folder's name is used instead")
        if not isinstance(record.config, dict):
            self.note(path, ": config is not a mapping of keys to values")
        row: dict[str, Any] = {
            "trial_id": _text(folder.name),
            "status": record.status,
            "reason": _text(record.reason or ""),
        }
        for key in ("eval_loss", "test_loss", "seconds"):
            row[key] = _number(getattr(record, key))
        for key in ("steps", "tokens", "adapter_params", "adapter_bytes"):
            row[key] = _count(getattr(record, key))
        absent_loss = record.eval_loss is None and record.status not in ("completed", "pruned")
        for key in ("eval_loss", "steps", "tokens", "seconds", "adapter_params", "adapter_bytes"):
            if row[key] is None and not (key == "eval_loss" and absent_loss):
                what = "missing" if getattr(record, key) is None else "not a number that can be used"
                self.note(path, f": status is {record.status}, but {key} is {what}")
        return row | _config_columns(record.config)

    def _metrics(self, folder: Path) -> list[Metrics]:
        try:
            return read_metrics(folder)
        except (OSError, ValueError) as error:
            self.note_error(folder / METRICS, error)
            return []

    def _config(self, folder: Path) -> object:
        try:
            return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.note_error(folder / CONFIG, error)
            return {}


def _number(value: object) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _point(line: Metrics) -> tuple[Any, ...] | None:
    """Of an evaluation: step, train loss, eval loss, learning rate; None without a step."""
    step = _count(line.step)
    found = [_number(part) for part in (line.train_loss, line.eval_loss, line.learning_rate)]
    return None if step is None else (step, *(math.nan if number is None else number for number in found))


def _count(value: object) -> int | None:
    """`value` where it is a whole number that 64 bits hold, else None."""
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**63 else None


def _config_columns(config: object) -> dict[str, Any]:
    if not isinstance(config, dict):
        return {}
    # A list or mapping as text: what follows groups and sorts by these values.
    plain = {key: _text(value) if isinstance(value, str | list | dict) else value for key, value in config.items()}
    return {"budget": _count(plain.get("steps"))} | {f"config.{key}": value for key, value in plain.items()}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table whose columns keep their types where values are missing (a rank stays an integer)."""
    # Everything groups by these, so their columns are there even if no trial says what it had.
    named = ("config.quantizer", "config.seed", "config.confirms")
    keys = dict.fromkeys([*named, *(key for row in rows for key in row if key not in COLUMNS)])
    fixed = {key: pd.Series([row.get(key) for row in rows], dtype=dtype) for key, dtype in COLUMNS.items()}
    config = {key: pd.Series([row.get(key) for row in rows], dtype=object).convert_dtypes() for key in keys}
    return pd.DataFrame(fixed | config)


def _distinct(mappings: Iterable[object]) -> Found:
    found: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for key, value in mapping.items() if isinstance(mapping, dict) else ():
            if value not in (None, "", [], {}) and value == value:  # a NaN is no value either
                found.setdefault(key, {})[_text(value)] = None
    return {key: tuple(values) for key, values in found.items()}


def _text(value: object) -> str:
    """`value` as text that UTF-8 can hold: a file's name and a JSON string may carry half a character."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "; ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")
