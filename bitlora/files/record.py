"""What is known of a trial, on disk: its record and the files beside it. Every file is written whole or not at all.

The layout is a contract with programs outside this repository; it imports neither torch nor ray. Of each file there is
one writer: the pack's first worker writes `config.json`, `metrics.jsonl`, `eval.parquet`, `adapter/`, the checkpoint and,
of a trial that confirms another, `test.parquet`;
the driver alone writes `record.json`, and removes the checkpoint of a trial that will not go on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from bitlora.files.origin import Origin
from bitlora.files.writing import append_line, replacing, write_json, write_text

Status = Literal["completed", "pruned", "diverged", "failed", "interrupted"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
TRIALS: Final = "trials"
"""In the sweep's folder: a folder for each trial, with what follows."""
RECORD: Final = "record.json"
CONFIG: Final = "config.json"
METRICS: Final = "metrics.jsonl"
EVAL: Final = "eval.parquet"
TEST: Final = "test.parquet"
ADAPTER: Final = "adapter"
CHECKPOINT: Final = "checkpoint.safetensors"
RUNGS: Final = "rung-*.safetensors"
"""Such checkpoints are of steps at which trials leave their slots: others may go on from them."""
RUNS: Final = "runs.jsonl"
"""In the sweep's folder: a line for each run of the command that has ended, whatever became of it."""
DATA: Final = "data"
"""Beside a spec, in the sweep's folder: what was read of its data files, and copies of them (`sweeps.driver.kept`)."""
KEPT: Final = "kept.json"
"""In there: what each file was, and which is its copy."""
STEERED: Final = "steered.jsonl"
"""In the sweep's folder: a line for each thing that a person did to it (`SteeringAct`)."""
CHOSEN: Final = "confirm.json"
"""There: seeds and rows that `confirm` left open, as they were chosen (`reports.load.chosen`)."""
STARTS: Final = "starts"
"""There: the adapters that clones begin with, `<trial>@<step>/`, as they were when the clone was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringAct:
    """Something that a person did to a sweep."""

    id: str
    at: str
    """When it was asked for: UTC, ISO 8601."""
    by: str
    """user@host."""
    what: str
    """In words."""
    trials: tuple[str, ...]
    """Which it was done to, and which it made."""
    result: str
    """In a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One trial when it has ended, however it ended."""

    trial_id: str
    status: Status
    reason: str
    """Why it ended so, in words; empty only where the status says all (`completed`)."""
    config: dict[str, Any]
    """`bitlora.config.trial.TrialConfig`, flat."""
    eval_loss: float | None
    """Nats per completion token at the last reported evaluation; None where there was none that is finite."""
    steps: int
    """Optimizer steps at that evaluation."""
    tokens: int
    """Tokens trained on until then, prompts included, padding not (there is none)."""
    seconds: float
    """Wall-clock seconds in its slot until then."""
    adapter_params: int
    adapter_bytes: int
    """Bytes of the adapter as packed: codes at their true density, and scales."""
    base: dict[str, Any]
    """Where it comes from (`bitlora.base.info.BaseInfo`), and of a trial that was evaluated in which `dtype` and on which
    `device` it was."""
    data: dict[str, Any]
    versions: dict[str, str]
    """On the machine of the pack that evaluated it; of one that never was, on the driver's."""
    metrics: dict[str, float] | None = None
    """The spec's `metrics` at the last reported evaluation, by name; None where it has none, or there was no evaluation."""
    test_metrics: dict[str, float] | None = None
    """Those of them that are over a split's own rows, over the test split, of a trial that has a `test_loss`."""
    test_loss: float | None = None
    """Nats per completion token over the test split, of a trial that confirms another and has completed."""
    schedule: list[dict[str, Any]] | None = None
    """Of a trial that became a copy of another, or whose values moved under way: what held before, oldest first, each
    `until` a step (`bitlora.config.sections.Stage`). With `config`, all that its weights went through."""
    same_as: str | None = None
    """The trial whose result this one has, since their configurations come to the same; it took no step of its own."""
    steered: Sequence[dict[str, Any]] | None = None
    """What a person did to it, oldest first, and what made it where it is a clone (`SteeringAct`); None: nothing."""
    eval_rows: int | None = None
    """Of the eval split, that `eval_loss` is over, of a pruned trial that was not scored on all of them; None: all. It
    compares with nothing but with what others came to on the same rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """A line of metrics.jsonl: one evaluation."""

    step: int
    tokens: int
    train_loss: float | None
    """Nats per completion token, the mean of the steps since the evaluation before; None at step 0."""
    eval_loss: float
    learning_rate: float
    """Of the step just taken."""
    seconds: float
    rows: int | None = None
    """Of the eval split, that the eval loss is over; not there: all."""
    row_losses: list[float] | None = None
    """Where rungs are scored until it is known who is stopped: of each row in the order of scoring
    (`sweeps.search.rungs.sequential`), in nats, summed over its completion tokens."""
    metrics: dict[str, float] | None = None
    """The spec's `metrics`, by name; a line has none where the spec has none."""

    def line(self) -> dict[str, Any]:
        """As it is written: without what is not there, but for the train loss, which each line has, if only as null."""
        return {key: value for key, value in asdict(self).items() if value is not None or key == "train_loss"}


def in_order(trial_id: str) -> str:
    """What puts ids in the order in which they were given: t10000 comes after t9999."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(12), trial_id)


def rung(step: int) -> str:
    """The name of the checkpoint of a trial that left its slot at `step`."""
    return RUNGS.replace("*", f"{step:06d}")


def write_record(folder: Path, record: Record) -> None:
    """Write `record` as `folder`/record.json. `folder` is the trial's."""
    write_json(folder / RECORD, asdict(record))


def read_record(folder: Path) -> Record:
    """The record of the trial in `folder`.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a record; the message names the file and what is wrong.
    """
    path = folder / RECORD
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a record: {str(error).removeprefix('Record.__init__() ')}") from None
    if record.status not in STATUSES:
        raise ValueError(f"{path}: status {record.status!r} is none of {', '.join(STATUSES)}")
    return record


def append_metrics(folder: Path, metrics: Metrics) -> None:
    """Add a line to metrics.jsonl, in one write."""
    append_line(folder / METRICS, json.dumps(metrics.line(), allow_nan=False))


def keep_metrics(folder: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl past `step`."""
    kept = [line for line in read_metrics(folder) if line.step <= step]
    write_text(folder / METRICS, "".join(json.dumps(line.line()) + "\n" for line in kept))


def read_metrics(folder: Path) -> list[Metrics]:
    """The evaluations of a trial, oldest first; a last line cut short by a crash is left out, no file gives none.

    Raises:
        ValueError: a line other than the last is broken; the message names it.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Metrics(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a line of metrics: {error}") from None
    return found


def write_scores(
    path: Path,
    example_ids: Sequence[str],
    losses: Sequence[float],
    tokens: Sequence[int],
    text_bytes: Sequence[int],
    origin: Origin | None = None,
    groups: Sequence[str] = (),
    columns: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> None:
    """Write eval.parquet or test.parquet: a row for each example that was scored.

    Args:
        losses: summed over the example's completion tokens, in nats.
        text_bytes: UTF-8 bytes of the text that those tokens stand for.
        origin: what computed them; kept in the file's metadata.
        groups: of each example what it belongs to, by the id of the first one; empty: to nothing but itself.
        columns: further ones, by metric: what the example adds to it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "example_id": pa.array(list(example_ids), pa.string()),
            "loss": pa.array(list(losses), pa.float64()),
            "tokens": pa.array(list(tokens), pa.int64()),
            "bytes": pa.array(list(text_bytes), pa.int64()),
            "group": pa.array(list(groups or example_ids), pa.string()),
            **{name: pa.array(list(values), pa.float64()) for name, values in columns.items()},
        }
    )
    if origin is not None:
        table = table.replace_schema_metadata(origin.to_metadata())
    with replacing(path) as part:
        pq.write_table(table, part)


def origin_of(path: Path) -> Origin | None:
    """What computed the scores in such a file; None where it does not say.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    import pyarrow.parquet as pq

    return Origin.from_metadata(pq.read_schema(path).metadata or {})


def of_set(metric: str) -> str:
    """The file, beside eval.parquet and like it, of the eval set that a metric is over. Of choices those of a question are
    a `group`, the right one first."""
    return f"eval-{metric}.parquet"


def means_of(path: Path, sums: Mapping[str, bool]) -> dict[str, float]:
    """What the metrics come to that have a column in such a file.

    Args:
        sums: their names -> whether the column counts tokens; else it has a value for each row.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path).to_pydict()
    tokens: int = sum(table["tokens"])
    return {
        name: math.fsum(table[name]) / (tokens if counts else len(table[name]))
        for name, counts in sums.items()
        if name in table
    }


def loss_of(path: Path) -> float:
    """The loss that such a file comes to, in nats per completion token: the ratio of the sums.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["loss", "tokens"]).to_pydict()
    total: int = sum(table["tokens"])
    return math.fsum(table["loss"]) / total
