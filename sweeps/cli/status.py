"""Where a sweep stands, running or ended, from its folder alone: for a person once or again and again, or as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bitlora.config.metrics import LOSS
from bitlora.files import record
from bitlora.files.storage import Storage
from reports.document.cells import seconds as in_words
from reports.document.cells import size
from sweeps.driver.resume import EXIT_CODE, JOURNAL, SPEC, Past, look
from sweeps.driver.underway.progress import describe
from sweeps.search.metric import Objective, at_least_as_good
from sweeps.spec.spec import Spec, load_spec

READ: Final = (SPEC, EXIT_CODE, JOURNAL, record.CONFIG, record.METRICS, record.RECORD, record.RUNS)
"""Names of the files that are looked into."""
BARS: Final = "▁▂▃▄▅▆▇█"
WIDE: Final = 24
"""Evaluations in a line of bars, at most."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a sweep's folder says of it."""

    spec: Spec
    past: Past
    code: int | None
    """None: it has not ended, or its driver died."""
    quiet: float
    """Seconds since anything was written."""
    search_ended: str = ""
    """Why fewer trials search than the spec has."""
    confirms: int = 0
    """Trials that confirm the best, at most."""
    worker_seconds: float | None = None
    """Of all runs, that of now included; None: nothing says."""

    @property
    def objective(self) -> Objective:
        """What is searched by."""
        return Objective.of_spec(self.spec.search.metric, self.spec.metrics)

    @property
    def open(self) -> list[str]:
        """Trials that began and have not ended."""
        return [trial for trial in self.past.configs if trial not in self.past.records]

    @property
    def trials(self) -> int:
        """Those that search, at most."""
        if self.search_ended:
            return sum(not config.get("confirms") for config in self.past.configs.values())
        return self.spec.search.trials

    @property
    def counts(self) -> Counter[str]:
        """How many have ended how."""
        return Counter(one.status for one in self.past.records.values())

    @property
    def front(self) -> list[record.Record]:
        """Where bytes are an objective too: the completed trials of the search than which no other has a lower loss in an
        adapter that is no larger, by their loss."""
        done = [one for one in self.past.completed.values() if one.eval_loss is not None]
        found: dict[tuple[float, float], record.Record] = {}
        for one in (
            sorted(done, key=lambda one: (one.eval_loss, one.adapter_bytes))
            if len(self.spec.search.objectives) > 1
            else ()
        ):
            values = float(one.eval_loss or 0.0), float(one.adapter_bytes)
            if not any(at_least_as_good(better, values) for better in found):
                found[values] = one
        return [*found.values()]

    @property
    def eta_seconds(self) -> float | None:
        """How long it takes at most at the pace of the trials that run; None: that cannot be told."""
        if self.code is not None:
            return None
        lines = {trial: found[-1] for trial in self.open if (found := self.past.metrics.get(trial))}
        pace = sum(line.step / line.seconds for line in lines.values() if line.seconds > 0)
        if not pace:
            return None
        budgets = {trial: int(config["steps"]) for trial, config in self.past.configs.items()}
        confirm = sum(bool(config.get("confirms")) for config in self.past.configs.values())
        begun = len(self.past.configs) - confirm
        to_come = (max(0, self.trials - begun) + max(0, self.confirms - confirm)) * max(budgets.values())
        left = sum(budgets[trial] - (lines[trial].step if trial in lines else 0) for trial in self.open)
        return (left + to_come) / pace

    @property
    def cost(self) -> float | None:
        """What it cost so far, in the currency of `resources.price_per_hour`; None where there is no price, or nothing to
        reckon it by."""
        price, gpus = self.spec.resources.price_per_hour, self.spec.resources.gpus_per_worker
        if price is None or self.worker_seconds is None:
            return None
        return price * self.worker_seconds / 3600 * (1.0 if gpus == "auto" else gpus or 1.0)


def standing(storage: Storage) -> Standing:
    """Look at a sweep's folder, and fetch what is needed for that.

    Raises:
        OSError, ValueError: it holds no sweep, or its spec cannot be read; the message is for a user.
    """
    storage.pull("", only=READ)
    folder, now = storage.folder, time.time()
    spec = load_spec(folder / SPEC)
    code = folder / EXIT_CODE
    # Not of what is here: a copy of it may be older.
    ended = int(code.read_text(encoding="utf-8")) if storage.exists(EXIT_CODE) else None
    written = storage.written(SPEC, record.TRIALS, "logs")
    quiet = max(0.0, now - (written or now))
    return Standing(spec, look(folder), ended, quiet, *_of_study(storage, spec), _worker_seconds(storage, spec))


def _of_study(storage: Storage, spec: Spec) -> tuple[str, int]:
    """Why fewer trials search, and how many confirm the best, as the study has it."""
    from sweeps.search.agenda import confirming, why_ended
    from sweeps.search.study import read_study

    with contextlib.suppress(OSError, ValueError, KeyError):  # it is being written
        if (storage.folder / JOURNAL).exists():
            study = read_study(storage.folder / JOURNAL)
            return why_ended(spec, study), confirming(spec, study)
    return "", confirming(spec, None)


def _worker_seconds(storage: Storage, spec: Spec) -> float | None:
    """Of the runs that have ended what they noted; of the one of now how long its packs have written their logs, which in
    object storage are not there before its end."""
    runs: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        runs = [json.loads(line) for line in (storage.folder / record.RUNS).read_text(encoding="utf-8").splitlines()]
    noted = [float(run["worker_seconds"]) for run in runs if run.get("worker_seconds") is not None]
    if storage.exists(EXIT_CODE):
        return sum(noted) if noted else None
    spans, since = [], (storage.folder / record.RUNS).stat().st_mtime if runs else 0.0
    for log in (storage.folder / "logs").glob("pack-*.jsonl"):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            with log.open(encoding="utf-8") as file:
                first = json.loads(file.readline())["time"]
            if first > since:
                spans.append(log.stat().st_mtime - first)
    return sum(noted) + sum(spans) * spec.resources.workers_per_pack if spans or noted else None


def told(found: Standing) -> dict[str, Any]:
    """As JSON: the fields stay as they are (`docs/commands.md`)."""
    past, axes = found.past, list(found.spec.search.space)
    best: dict[str, Any] | None = None
    if (first := past.best(found.objective)) is not None:
        best = {"trial": first[1], "eval_loss": past.records[first[1]].eval_loss}
        if found.objective.name != LOSS:
            best[found.objective.name] = found.objective.turned(first[0])
    running = []
    for trial in found.open:
        config, lines = past.configs[trial], past.metrics.get(trial, [])
        running.append(
            {
                "trial": trial,
                "step": lines[-1].step if lines else 0,
                "steps": config["steps"],
                "eval_loss": lines[-1].eval_loss if lines else None,
                "config": {axis: config[axis] for axis in axes if axis in config},
                "curve": [[line.step, line.eval_loss] for line in lines],
            }
        )
    return {
        "name": found.spec.name,
        "exit_code": found.code,
        "quiet_seconds": round(found.quiet, 1),
        "trials": found.trials,
        "search_ended": found.search_ended or None,
        "began": len(past.configs),
        "ended": dict(sorted(found.counts.items())),
        "best": best,
        **({"front": [_on_front(one) for one in found.front]} if len(found.spec.search.objectives) > 1 else {}),
        "running": running,
        "eta_seconds": found.eta_seconds,
        "tokens": sum(past.tokens.values()),
        "slot_seconds": sum(lines[-1].seconds for lines in past.metrics.values() if lines),
        "worker_seconds": found.worker_seconds,
        "cost": found.cost,
    }


def _on_front(one: record.Record) -> dict[str, Any]:
    return {"trial": one.trial_id, "eval_loss": one.eval_loss, "adapter_bytes": one.adapter_bytes}


def draw(console: Console, found: Standing) -> None:
    """Print it."""
    console.print(drawn(found))


def drawn(found: Standing) -> Group:
    """It for a terminal."""
    past = found.past
    ended = ", ".join(f"{count} {status}" for status, count in sorted(found.counts.items())) or "none"
    state = f"ended with exit code {found.code}" if found.code is not None else f"last written {found.quiet:.0f} s ago"
    search = found.spec.search
    bounded = any(bound is not None for bound in (search.hours, search.tokens, search.patience))
    most = "at most " if bounded and not found.search_ended and found.code is None else ""
    total = f"{most}{found.trials} trials" + (" and those that confirm the best" if found.spec.confirm else "")
    parts = [Text(f"{found.spec.name}: {state}; of {total} have ended: {ended}")]
    if found.search_ended:
        parts.append(Text(f"no more trials are asked for: {found.search_ended}"))
    objective = found.objective
    if (best := past.best(objective)) is not None:
        by = "" if objective.name == LOSS else f" by {objective.name}"
        parts.append(Text(f"best so far{by}: {best[1]} {objective.turned(best[0]):.4f}"))
    if front := found.front:
        ends = [f"{one.trial_id} {one.eval_loss:.4f} at {size(one.adapter_bytes)}" for one in (front[0], front[-1])]
        parts.append(Text(f"on the front so far: {len(front)}, from {' to '.join(dict.fromkeys(ends))}"))
    spent = [f"{sum(past.tokens.values()):,} tokens"] if past.tokens else []
    if found.worker_seconds is not None:
        spent.append(f"{in_words(found.worker_seconds)} of workers")
    if found.cost is not None:
        spent.append(f"which cost {found.cost:.2f}")
    if spent:
        parts.append(Text("spent: " + ", ".join(spent)))
    if (left := found.eta_seconds) is not None:
        parts.append(Text(f"to come: {in_words(left)} at most, at this pace"))
    return Group(*parts, *([_table(found)] if found.open else []))


def _table(found: Standing) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("not ended", "step", "eval loss", "", ""):
        table.add_column(name, justify="left" if name in ("not ended", "") else "right", no_wrap=True)
    for trial in found.open:
        config, lines = found.past.configs[trial], found.past.metrics.get(trial)
        step, loss = (str(lines[-1].step), f"{lines[-1].eval_loss:.4f}") if lines else ("0", "–")
        bars = sparkline([line.eval_loss for line in lines or ()])
        table.add_row(trial, f"{step}/{config['steps']}", loss, bars, describe(config, list(found.spec.search.space)))
    return table


def sparkline(values: Sequence[float]) -> str:
    """The last of these numbers as bars, the lowest of them the lowest."""
    shown = [value for value in values if math.isfinite(value)][-WIDE:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)
