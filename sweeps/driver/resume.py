"""What a sweep's folder holds of an earlier run of it, and whether that can be gone on with."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bitlora.files import record
from bitlora.files.record import Metrics, Record
from sweeps.driver.prepare import Prepared
from sweeps.spec.errors import SpecError
from sweeps.spec.spec import Spec, load_spec

SPEC: Final = "sweep.yaml"
JOURNAL: Final = "study.journal"
EXIT_CODE: Final = "exit_code"
DECIDING: Final = (SPEC, JOURNAL, record.CONFIG, record.METRICS, record.RECORD, record.EVAL, record.TEST, record.RUNS)
"""Names of the files that a run of the sweep which goes on looks at."""
DATA, BASE = "data", "base"
"""Attributes of the study: what the sweep began with."""
FREE: Final = ("out", "resources.", "train.checkpoint_every", "trackers")
"""Keys of a spec, or how they begin, that may differ when a sweep goes on: they decide no number."""


@dataclass(frozen=True, slots=True)
class Past:
    """By trial: what is there. A trial that is not ended may have each, all or none of them."""

    metrics: dict[str, list[Metrics]]
    records: dict[str, Record]
    configs: dict[str, dict[str, Any]]

    @property
    def best(self) -> tuple[float, str] | None:
        """The lowest eval loss of a completed trial, and its id."""
        found = [
            (r.eval_loss, t) for t, r in self.records.items() if r.status == "completed" and r.eval_loss is not None
        ]
        return min(found, default=None)


def look(folder: Path) -> Past:
    """Read what is in a sweep's folder; a file that is cut short or broken counts as missing."""
    past = Past({}, {}, {})
    for trial in sorted((folder / "trials").glob("*/")):
        with contextlib.suppress(OSError, ValueError):
            past.metrics[trial.name] = record.read_metrics(trial)
        with contextlib.suppress(OSError, ValueError):
            past.records[trial.name] = record.read_record(trial)
        with contextlib.suppress(OSError, ValueError):
            past.configs[trial.name] = json.loads((trial / record.CONFIG).read_text(encoding="utf-8"))
    return past


def cannot_resume(spec: Spec, folder: Path) -> list[str]:
    """What keeps the sweep in `folder` from being gone on with by `spec`, a line each."""
    path = folder / SPEC
    if not path.exists():
        return [f"{spec.place}: there is no sweep to go on with (no {SPEC}); run it without --resume"]
    try:
        begun = load_spec(path)
    except SpecError as error:
        return error.lines
    now, then = _flat(spec.model_dump(mode="json")), _flat(begun.model_dump(mode="json"))
    return [
        f"{key}: {_shown(now.get(key))}, but the sweep in {spec.place} was begun with {_shown(then.get(key))}; "
        "a sweep goes on as it was begun"
        for key in sorted(now.keys() | then.keys())
        if not key.startswith(FREE) and now.get(key) != then.get(key)
    ]


def began_with(prepared: Prepared) -> dict[str, str]:
    """What a sweep may not change under way, beside its spec."""
    return {DATA: prepared.dataset.summary.fingerprint, BASE: prepared.base.revision}


def changed(prepared: Prepared, folder: Path, place: str) -> list[str]:
    """What is no longer what the sweep in `folder` began with, a line each."""
    from sweeps.search.study import read_study

    if not (folder / JOURNAL).exists():
        return []
    study = read_study(folder / JOURNAL)
    what = {DATA: "data.source: the rows", BASE: "base.model: the model"}
    return [
        f"{what[key]} changed since the sweep in {place} began (was {then}, is {now}); give what it began with"
        for key, now in began_with(prepared).items()
        if (then := study.user_attrs.get(key, now)) != now
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {at: value}
    return {
        key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{at}.{name}" if at else name).items()
    }
