"""What a person did to a sweep is written down: in its study, and in `steered.jsonl`, which the report reads. So is what a
sweep that goes on has more of than before."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bitlora.files.record import STEERED, SteeringAct
from bitlora.files.storage import Storage
from bitlora.files.writing import append_line, write_text
from sweeps.driver.requests import somebody
from sweeps.driver.resume import GROWING, JOURNAL, SPEC, grown
from sweeps.search.steering.steered import note
from sweeps.search.study import open_study
from sweeps.spec.spec import Spec, dump_spec, load_spec


def write_down(act: SteeringAct, noted: Callable[[dict[str, Any]], object], storage: Storage) -> None:
    """Something was done.

    Args:
        noted: tells the study.
        storage: of the sweep's folder.
    """
    noted(asdict(act))
    with contextlib.suppress(OSError):  # the study has it
        append_line(storage.folder / STEERED, json.dumps(asdict(act)))
        storage.push_soon(STEERED)


def grow(spec: Spec, storage: Storage) -> None:
    """Where the sweep goes on by `spec` with more than it had: its sweep.yaml says so from now on, and who did it, and
    when, is written down. Raises OSError."""
    folder = storage.folder
    begun = load_spec(folder / SPEC)
    if (larger := grown(spec, folder)) is None:
        return
    write_text(folder / SPEC, dump_spec(larger))
    storage.push(SPEC)
    study = open_study(larger, folder / JOURNAL)
    at, by = datetime.now(UTC).isoformat(timespec="seconds"), somebody()
    for what, result in _more(begun, larger):
        act = SteeringAct(id=secrets.token_hex(4), at=at, by=by, what=what, trials=(), result=result)
        write_down(act, partial(note, study), storage)
    storage.push_soon(JOURNAL)


def _more(begun: Spec, larger: Spec) -> Iterator[tuple[str, str]]:
    """What `larger` has more, and what comes of it."""
    if (trials := larger.search.trials - begun.search.trials) > 0:
        yield f"add {trials} trials", f"{trials} more trials: {larger.search.trials} search now"
    for key in GROWING[1:]:
        then, now = (_shown(getattr(spec.search, key.partition(".")[2])) for spec in (begun, larger))
        if now != then:
            yield f"{key}: {now}", f"{key} is {now}, and was {then}"
    if larger.confirm is not None and larger.confirm != begun.confirm:
        top, seeds = larger.confirm.top, larger.confirm.seeds
        yield "confirm", f"the best are confirmed when the search has ended: top {top}, seeds {seeds}"


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
