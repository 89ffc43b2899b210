"""The files of a sweep's folder, read one by one, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bitlora.files.record import (
    CONFIG,
    DATA,
    KEPT,
    METRICS,
    RECORD,
    RUNS,
    STEERED,
    TRIALS,
    Metrics,
    Record,
    in_order,
    read_metrics,
    read_record,
)
from reports.load.values import as_text, finite, whole_number

SPEC: Final = "sweep.yaml"
UNKNOWN: Final = "unknown"
"""The status of a trial without a readable record: still running, or cut off."""


@dataclass(slots=True)
class FolderReader:
    """Reads a sweep's folder, and notes what cannot be read."""

    root: Path
    problems: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    curves: list[tuple[Any, ...]] = field(default_factory=list)
    measured: list[tuple[Any, ...]] = field(default_factory=list)
    """Trial, step, metric, value."""
    spec_hash: str = ""

    def note(self, path: Path, what: str) -> None:
        self.problems.append(as_text(f"{path.relative_to(self.root).as_posix()}{what}"))

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
        return self._lines(RUNS)

    def steered(self) -> tuple[dict[str, Any], ...]:
        return self._lines(STEERED)

    def _lines(self, name: str) -> tuple[dict[str, Any], ...]:
        """The mappings that a file has, one a line; none where there is no such file."""
        path = self.root / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            return tuple(found for line in lines if isinstance(found := json.loads(line), dict))
        except (OSError, ValueError) as error:
            self.note_error(path, error)
            return ()

    def data_files(self) -> tuple[dict[str, Any], ...]:
        path = self.root / DATA / KEPT
        try:
            found = json.loads(path.read_bytes()) if path.exists() else []
        except (OSError, ValueError) as error:
            self.note_error(path, error)
            return ()
        return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()

    def trial_folders(self) -> list[Path]:
        path = self.root / TRIALS
        if not path.is_dir():
            self.note(path, ": missing")
            return []
        # A hidden folder is a write that did not finish (`bitlora.files.writing.write_folder`).
        found = (entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        return sorted(found, key=lambda entry: in_order(entry.name))

    def trial(self, folder: Path) -> dict[str, Any]:
        """The row of the trial in `folder`."""
        evaluations = self._metrics(folder)
        name = as_text(folder.name)
        self.curves += [(name, *point) for line in evaluations if (point := _point(line))]
        self.measured += [
            (name, whole_number(line.step), str(metric), number)
            for line in evaluations
            for metric, value in _numbers(line.metrics).items()
            if (number := finite(value)) is not None
        ]
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
        row: dict[str, Any] = {"trial_id": as_text(folder.name), "status": UNKNOWN, "reason": reason}
        if evaluations:
            last = evaluations[-1]
            row |= {"eval_loss": finite(last.eval_loss), "seconds": finite(last.seconds)}
            row |= {"steps": whole_number(last.step), "tokens": whole_number(last.tokens)}
        return row | _configuration_columns(self._config(folder))

    def _row(self, folder: Path, record: Record) -> dict[str, Any]:
        path = folder / RECORD
        if record.trial_id != folder.name:
            self.note(path, f": trial_id is {as_text(record.trial_id)}; the folder's name is used instead")
        if not isinstance(record.config, dict):
            self.note(path, ": config is not a mapping of keys to values")
        row: dict[str, Any] = {
            "trial_id": as_text(folder.name),
            "status": record.status,
            "reason": as_text(record.reason or ""),
            "same_as": as_text(record.same_as) if record.same_as else None,
        }
        for key in ("eval_loss", "test_loss", "seconds"):
            row[key] = finite(getattr(record, key))
        for before, found in (("metric.", record.metrics), ("test_metric.", record.test_metrics)):
            row |= {f"{before}{as_text(name)}": finite(value) for name, value in _numbers(found).items()}
        for key in ("steps", "tokens", "adapter_params", "adapter_bytes"):
            row[key] = whole_number(getattr(record, key))
        if (scored := whole_number(record.eval_rows)) is not None:  # it compares with no loss over all rows
            row |= {"eval_loss": None, "eval_rows": scored, "part_loss": row["eval_loss"]}
        absent_loss = scored is not None or (record.eval_loss is None and record.status not in ("completed", "pruned"))
        for key in ("eval_loss", "steps", "tokens", "seconds", "adapter_params", "adapter_bytes"):
            if row[key] is None and not (key == "eval_loss" and absent_loss):
                what = "missing" if getattr(record, key) is None else "not a number that can be used"
                self.note(path, f": status is {record.status}, but {key} is {what}")
        return row | _configuration_columns(record.config)

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


def _point(line: Metrics) -> tuple[Any, ...] | None:
    """Of an evaluation: step, train loss, eval loss, learning rate; None without a step."""
    step = whole_number(line.step)
    scored = line.eval_loss if line.rows is None else None  # over some rows it is no point of the same curve
    found = [finite(part) for part in (line.train_loss, scored, line.learning_rate)]
    return None if step is None else (step, *(math.nan if number is None else number for number in found))


def _numbers(metrics: object) -> dict[Any, Any]:
    return metrics if isinstance(metrics, dict) else {}


def _configuration_columns(config: object) -> dict[str, Any]:
    if not isinstance(config, dict):
        return {}
    # A list or mapping as text: what follows groups and sorts by these values.
    plain = {key: as_text(value) if isinstance(value, str | list | dict) else value for key, value in config.items()}
    return {"budget": whole_number(plain.get("steps"))} | {f"config.{key}": value for key, value in plain.items()}
