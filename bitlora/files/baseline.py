"""What the base scores without an adapter: step 0 of every trial, once for a sweep. Imports neither torch nor ray.

In the sweep's folder, with one writer, the first worker of the pack that scored it: `base/eval.parquet` and, where there is
a test split, `base/test.parquet`, which are like a trial's (`bitlora.files.record`), and last `base/record.json`. Sweeps
of before have none of it, nor have those in which it could not be scored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bitlora.files.record import RECORD
from bitlora.files.writing import write_json

BASE: Final = "base"
"""In the sweep's folder: the folder of all that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The base without an adapter, as `base/record.json` has it."""

    eval_loss: float
    """Nats per completion token of the eval split: the sum of `loss` over the sum of `tokens` in its eval.parquet."""
    test_loss: float | None
    """The same over the test split; None where it has no rows."""
    tokens: int
    """Completion tokens of the eval split."""
    base: dict[str, Any]
    """Its `model`, `quantization` and `revision`, and in which `dtype` and on which `device` it was scored."""
    versions: dict[str, str]
    """On the machine of the pack that scored it."""
    metrics: dict[str, float] | None = None
    """The spec's `metrics`, by name; None where it has none."""


def write_baseline(folder: Path, baseline: Baseline) -> None:
    """Write `baseline` as record.json in `folder`, the sweep's `base`.

    Raises:
        OSError: it cannot be written.
    """
    held = asdict(baseline)
    if baseline.metrics is None:
        del held["metrics"]
    write_json(folder / RECORD, held)


def read_baseline(folder: Path) -> Baseline:
    """What `folder`, the sweep's `base`, has on record.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not such a record; the message names the file and what is wrong.
    """
    path = folder / RECORD
    try:
        return Baseline(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a record: {str(error).removeprefix('Baseline.__init__() ')}") from None
