"""The tables of a report: first the data of each, then its drawing as Markdown.

Whatever stands in a record (names, reasons, values) goes through `text` or `value` on its way to the page.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from bitlora.config import AXES, QUANTIZERS
from bitlora.record import STATUSES
from reports.stats import Comparable, Row, by_progress, rows

SHOWN: Final = 30
"""Rows of a long table that are drawn; trials.csv has them all."""
NAMED: Final = 6
"""Trials named in one cell."""
NOTHING: Final = "–"
DERIVED: Final = ("steps", "eval_every", "micro_batch")
"""Keys of a configuration that are no axis: they follow from others, or change no result."""


# --- data


@dataclass(frozen=True, slots=True)
class Axes:
    """The keys of the trials' configurations."""

    varying: tuple[str, ...]
    """Those that differ between trials, or that the spec's search space varies."""
    fixed: dict[str, Any]
    """Those that all trials share, with their value."""


@dataclass(frozen=True, slots=True)
class QuantizerBest:
    """What a sweep found for one quantizer."""

    quantizer: str
    began: int
    """Trials with this quantizer, however they ended."""
    full: int
    """Those of them that are ranked."""
    best: Row | None
    """Its best ranked trial; where it has none, the one that came furthest; None where none came anywhere."""
    gap: float | None
    """Nats per completion token above the best of all quantizers; None where `best` is not ranked."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The trials that ended the same way for the same reason."""

    status: str
    reason: str
    trial_ids: tuple[str, ...]


def axes(trials: pd.DataFrame, space: Iterable[str]) -> Axes:
    """What varies and what is fixed over `trials`; `space`: the keys that the spec's search space varies."""
    keys = [str(column).removeprefix("config.") for column in trials.columns if str(column).startswith("config.")]
    keys.sort(key=lambda key: (AXES.index(key) if key in AXES else len(AXES), key))
    named = set(space)
    varying, fixed = [], {}
    for key in keys:
        found = trials[f"config.{key}"].dropna()
        if key not in DERIVED and (key in named or len({str(value) for value in found}) > 1):
            varying.append(key)
        elif found.nunique() == 1:
            fixed[key] = found.tolist()[0]
    return Axes(tuple(varying), fixed)


def quantizer_bests(trials: pd.DataFrame, groups: Comparable, asked: Collection[str]) -> tuple[QuantizerBest, ...]:
    """A line for each quantizer in `trials` or `asked` (the spec's): the ranked by eval loss, then the others."""
    column = "config.quantizer"
    known = dict.fromkeys((*QUANTIZERS, *sorted(asked), *sorted(str(name) for name in trials[column].dropna())))
    lowest = groups.ranked["eval_loss"].min()
    begun = pd.concat([groups.other, groups.pruned[groups.pruned["eval_loss"].notna()]])
    found = []
    for name in known:
        of_all, ranked = trials[trials[column] == name], groups.ranked[groups.ranked[column] == name]
        if of_all.empty and name not in asked:
            continue
        candidates = ranked if len(ranked) else by_progress(begun[begun[column] == name])
        best = rows(candidates.head(1))[0] if len(candidates) else None
        gap = float(best["eval_loss"] - lowest) if best is not None and len(ranked) else None
        found.append(QuantizerBest(name, len(of_all), len(ranked), best, gap))
    return tuple(sorted(found, key=lambda line: math.inf if line.gap is None else line.gap))


def endings(trials: pd.DataFrame) -> tuple[Ending, ...]:
    """How the trials ended, and why: by status in the record's order, then the commonest reason first."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in rows(trials[["trial_id", "status", "reason", "eval_loss"]]):
        lossless = row["status"] == "completed" and pd.isna(row["eval_loss"])
        reason = row["reason"] or ("without a usable eval loss: not ranked" if lossless else "")
        grouped.setdefault((row["status"], reason), []).append(row["trial_id"])
    found = [Ending(status, reason, tuple(ids)) for (status, reason), ids in grouped.items()]
    order: dict[str, int] = {status: place for place, status in enumerate(STATUSES)}
    return tuple(sorted(found, key=lambda e: (order.get(e.status, len(order)), -len(e.trial_ids), e.reason)))


# --- drawing


def text(anything: object, limit: int = 200) -> str:
    """`anything` as one line of Markdown that means only itself, in a table's cell or a sentence.

    Right-to-left text is isolated, so that it cannot reorder the numbers beside it.
    """
    line = str(anything).encode("utf-8", "replace").decode("utf-8")
    line = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in line)
    line = re.sub("[\u202a-\u202e\u2066-\u2069\u200e\u200f]", "", line)
    line = " ".join(line.split())
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    leftward = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    return f"\u2068{line}\u2069" if leftward else line


def value(key: str, anything: object) -> str:
    """A configuration's value under `key`: learning rates as 2e-4, what is missing or not finite as a dash."""
    if anything is None or anything is pd.NA:
        return NOTHING
    if isinstance(anything, bool):
        return str(anything).lower()
    if isinstance(anything, int | float):
        if not math.isfinite(anything):
            return NOTHING
        if key == "learning_rate" or 0 < abs(anything) < 1e-2:
            mantissa, exponent = f"{anything:.2e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{anything:g}" if isinstance(anything, float) else str(anything)
    return text(anything, 60) or NOTHING


def loss(nats: object) -> str:
    """Nats per completion token, four decimals."""
    return f"{nats:.4f}" if isinstance(nats, float) and math.isfinite(nats) else NOTHING


def gap(nats: float | None) -> str:
    """A difference of losses: one that is there but too small for four decimals is not printed as zero."""
    if nats is None:
        return NOTHING
    return "under 0.0001" if 0 < nats < 0.00005 else f"{nats:.4f}"


def size(count: object) -> str:
    """Bytes in powers of 1000."""
    if not isinstance(count, int):
        return NOTHING
    number, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if number < 999.95:
            break
        number, unit = number / 1000, larger
    return f"{count} B" if unit == "B" else f"{number:.1f} {unit}"


def bits(row: Mapping[str, Any]) -> str:
    """Bits that the packed adapter of `row` spends on a parameter, scales included."""
    params, packed = row["adapter_params"], row["adapter_bytes"]
    return f"{8 * packed / params:.2f}" if isinstance(params, int) and isinstance(packed, int) and params else NOTHING


def whole(count: object) -> str:
    """A whole number with its thousands apart."""
    return f"{count:,}" if isinstance(count, int) else NOTHING


def names(trial_ids: Sequence[str], limit: int = NAMED) -> str:
    """The first of `trial_ids`, and how many more there are."""
    shown = ", ".join(text(trial_id, 60) for trial_id in trial_ids[:limit])
    return f"{shown} and {len(trial_ids) - limit:,} more" if len(trial_ids) > limit else shown


def draw(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the name of a column to be set to the right begins with `>`. Cells are Markdown already."""
    right = [column.startswith(">") for column in columns]
    cells = [[column.removeprefix(">") for column in columns], *lines]
    # Padded, so that it also reads well unrendered; a last column of words may be long and is left ragged.
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    widths[-1] = widths[-1] if right[-1] else 3
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]

    def drawn(line: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([drawn(cells[0]), drawn(rule), *(drawn(line) for line in lines)]) + "\n"


def heads(keys: Sequence[str]) -> list[str]:
    """Column names of configuration keys."""
    return [text(key, 40).replace("_", " ") for key in keys]


def draw_quantizers(lines: Sequence[QuantizerBest], varying: Sequence[str]) -> str:
    """One line per quantizer: its best trial; what is not at equal budget is marked and explained below."""
    keys = ["rank", "alpha", "learning_rate", *(["activations"] if "activations" in varying else [])]
    drawn, notes = [], []
    for line in lines:
        best = line.best or {}
        name = text(best["trial_id"], 60) if best else "none"
        if best and line.gap is None:
            ended = f"{best['status']} at step {whole(best['steps'])} of {whole(best['budget'])}"
            notes.append(f"† Not at equal budget: {name} was {ended}, so its loss does not compare with the others.\n")
            name += " †"
        drawn.append(
            [
                *(text(line.quantizer, 60), f"{line.full:,} of {line.began:,}", name, loss(best.get("eval_loss"))),
                *(gap(line.gap), *(value(key, best.get(f"config.{key}")) for key in keys)),
                *((whole(best["adapter_params"]), size(best["adapter_bytes"]), bits(best)) if best else [NOTHING] * 3),
            ]
        )
    columns = [
        "quantizer",
        ">at full budget",
        "best trial",
        ">eval loss",
        ">gap to best",
        *(f">{h}" for h in heads(keys)),
    ]
    return "\n".join([draw([*columns, ">parameters", ">packed size", ">bits per parameter"], drawn), *notes])


def draw_ranked(ranked: pd.DataFrame, varying: Sequence[str]) -> str:
    """The leaderboard: `Comparable.ranked`."""
    lowest = ranked["eval_loss"].min()
    lines = [
        [
            *(str(row["place"]), text(row["trial_id"], 60), loss(row["eval_loss"]), gap(row["eval_loss"] - lowest)),
            *(value(key, row[f"config.{key}"]) for key in varying),
            size(row["adapter_bytes"]),
        ]
        for row in rows(ranked.head(SHOWN))
    ]
    columns = [">place", "trial", ">eval loss", ">gap to best", *heads(varying), ">packed size"]
    return draw(columns, lines) + more(len(ranked))


def draw_unranked(trials: pd.DataFrame, varying: Sequence[str]) -> str:
    """Trials that stopped at different steps: `Comparable.pruned` or `Comparable.other`."""
    lines = [
        [
            *(text(row["trial_id"], 60), f"{whole(row['steps'])} of {whole(row['budget'])}", loss(row["eval_loss"])),
            *(value(key, row[f"config.{key}"]) for key in varying),
        ]
        for row in rows(trials.head(SHOWN))
    ]
    return draw(["trial", ">step reached", ">eval loss there", *heads(varying)], lines) + more(len(trials))


def draw_endings(lines: Sequence[Ending]) -> str:
    """How many trials ended how, and why."""
    drawn = [
        [text(line.status), f"{len(line.trial_ids):,}", names(line.trial_ids), text(line.reason) or NOTHING]
        for line in lines[:SHOWN]
    ]
    return draw(["status", ">trials", "which", "reason"], drawn) + more(len(lines), "reasons")


def more(count: int, what: str = "trials") -> str:
    """The line below a table that was cut at `SHOWN`."""
    return f"\nand {count - SHOWN:,} more {what} in trials.csv\n" if count > SHOWN else ""
