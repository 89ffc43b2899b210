"""Where a sweep stands, running or ended, from its folder alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from bitlora.files import record
from bitlora.files.storage import Storage
from sweeps.driver.resume import EXIT_CODE, SPEC, Past, look
from sweeps.driver.underway.progress import describe
from sweeps.spec.spec import Spec, load_spec

READ: Final = (SPEC, EXIT_CODE, record.CONFIG, record.METRICS, record.RECORD)
"""Names of the files that are looked into."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a sweep's folder says of it."""

    spec: Spec
    past: Past
    code: int | None
    """None: it has not ended, or its driver died."""
    quiet: float
    """Seconds since anything was written."""

    @property
    def open(self) -> list[str]:
        """Trials that began and have not ended."""
        return [trial for trial in self.past.configs if trial not in self.past.records]


def standing(storage: Storage) -> Standing:
    """Look at a sweep's folder, and fetch what is needed for that.

    Raises:
        OSError, ValueError: it holds no sweep, or its spec cannot be read; the message is for a user.
    """
    storage.pull("", only=READ)
    folder, now = storage.folder, time.time()
    spec = load_spec(folder / SPEC)
    code = folder / EXIT_CODE
    ended = int(code.read_text(encoding="utf-8")) if code.exists() else None
    # Not of the files here: those of object storage have just been fetched.
    written = storage.written(SPEC, record.TRIALS, "logs")
    return Standing(spec, look(folder), ended, max(0.0, now - (written or now)))


def draw(console: Console, found: Standing) -> None:
    """Print it."""
    past = found.past
    counts = Counter(one.status for one in past.records.values())
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"
    state = f"ended with exit code {found.code}" if found.code is not None else f"last written {found.quiet:.0f} s ago"
    searching = found.spec.search.trials
    confirm = found.spec.confirm
    total = f"{searching} trials" if confirm is None else f"{searching} trials and those that confirm the best"
    console.print(f"{found.spec.name}: {state}; of at most {total} have ended: {ended}", highlight=False)
    if past.best is not None:
        console.print(f"best so far: {past.best[1]} {past.best[0]:.4f}", highlight=False)
    if not found.open:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("not ended", "step", "eval loss", ""):
        table.add_column(name, justify="left" if name in ("not ended", "") else "right")
    for trial in found.open:
        config, lines = past.configs[trial], past.metrics.get(trial)
        step, loss = (str(lines[-1].step), f"{lines[-1].eval_loss:.4f}") if lines else ("0", "–")
        table.add_row(trial, f"{step}/{config['steps']}", loss, describe(config, list(found.spec.search.space)))
    console.print(table)
