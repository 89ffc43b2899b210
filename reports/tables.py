"""The tables of a report: first the data of each, then its cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from bitlora.config import AXES, QUANTIZERS
from bitlora.record import STATUSES
from reports.cells import bits, cell, gap, head, loss, missing, names, size, value, whole
from reports.document import NOTHING, Cell, Column, Table, plain
from reports.paired import Interval, paired
from reports.stats import Comparable, Row, ScoresOf, by_progress, rows

DERIVED: Final = ("steps", "eval_every", "micro_batch", "confirms")
"""Keys of a configuration that are no axis: they follow from others, or change no result."""
SHOWN: Final = 30
"""Rows of a table that are drawn at once."""


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
    """Trials of the search with this quantizer, however they ended."""
    full: int
    """Those of them that are ranked."""
    best: Row | None
    """Its best ranked configuration; where it has none, the trial that came furthest; None where none came anywhere."""
    gap: float | None
    """Nats per completion token above the best of all quantizers; None where `best` is not ranked."""
    interval: Interval | None
    """Of that gap; None also for the best itself."""


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


def quantizer_bests(
    trials: pd.DataFrame, groups: Comparable, asked: Collection[str], scores: ScoresOf = lambda row: {}
) -> tuple[QuantizerBest, ...]:
    """A line for each quantizer in `trials` or `asked` (the spec's): the ranked by eval loss, then the others."""
    column = "config.quantizer"
    known = dict.fromkeys((*QUANTIZERS, *sorted(asked), *sorted(str(name) for name in trials[column].dropna())))
    leader = rows(groups.ranked.head(1))
    begun = pd.concat([groups.other, groups.pruned[groups.pruned["eval_loss"].notna()]])
    found = []
    for name in known:
        of_all, ranked = trials[trials[column] == name], groups.ranked[groups.ranked[column] == name]
        if of_all.empty and name not in asked:
            continue
        candidates = ranked if len(ranked) else by_progress(begun[begun[column] == name])
        best = rows(candidates.head(1))[0] if len(candidates) else None
        apart, interval = None, None
        if best is not None and len(ranked):
            apart = float(best["eval_loss"] - leader[0]["eval_loss"])
            if best["trial_id"] != leader[0]["trial_id"]:
                interval = paired(scores(leader[0]), scores(best))
        full = sum(len(group) for group in ranked["trials"])
        found.append(QuantizerBest(name, len(of_all), full, best, apart, interval))
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


# --- cells


def _config(row: Row, keys: Sequence[str]) -> list[Cell]:
    return [cell(value(key, row.get(f"config.{key}")), row.get(f"config.{key}")) for key in keys]


def _heads(keys: Sequence[str], frame: pd.DataFrame) -> list[Column]:
    """Columns of configuration keys: numbers to the right."""
    numbers = pd.api.types.is_numeric_dtype
    return [head(key, f"config.{key}" in frame and numbers(frame[f"config.{key}"])) for key in keys]


def loss_cell(row: Row, key: str = "eval_loss") -> Cell:
    """A loss with its standard error over seeds, where it has one."""
    found, error = row.get(key), row.get("error")
    if not isinstance(found, float) or not isinstance(error, float) or missing(found) or missing(error):
        return cell(loss(found, error), found)
    return cell(loss(found, error), found, ("", found), ("standard error", error))


def between(interval: Interval | None, digits: int = 4) -> Cell:
    """An interval's two ends; where it holds zero, the word for that."""
    if interval is None:
        return Cell(NOTHING)
    tied = "" if interval.decided else " (tied)"
    text = f"{interval.low:z.{digits}f} to {interval.high:z.{digits}f}{tied}"
    return cell(text, interval.low, ("low", interval.low), ("high", interval.high))


def quantizer_table(lines: Sequence[QuantizerBest], varying: Sequence[str]) -> tuple[Table, list[str]]:
    """One line per quantizer: its best configuration. With it the notes on what is not at equal budget, marked by †."""
    keys = ["rank", "alpha", "learning_rate", *(["activations"] if "activations" in varying else [])]
    drawn, notes = [], []
    for line in lines:
        best = line.best or {}
        name = plain(best["trial_id"], 60) if best else "none"
        if best and line.gap is None:
            ended = f"{best['status']} at step {whole(best['steps'])} of {whole(best['budget'])}"
            notes.append(f"† Not at equal budget: {name} was {ended}, so its loss does not compare with the others.")
            name += " †"
        spent = bits(best) if best else None
        drawn.append(
            (
                cell(plain(line.quantizer, 60)),
                cell(f"{line.full:,} of {line.began:,}", line.full),
                cell(name),
                loss_cell(best),
                cell(gap(line.gap), line.gap),
                between(line.interval),
                *_config(best, keys),
                cell(whole(best.get("adapter_params")), best.get("adapter_params")),
                cell(size(best.get("adapter_bytes")), best.get("adapter_bytes")),
                cell(NOTHING if spent is None else f"{spent:.2f}", spent),
            )
        )
    columns = [
        Column("quantizer"),
        Column("at full budget", True),
        Column("best trial"),
        *(Column(name, True) for name in ("eval loss", "gap to best", "95 % interval of the gap")),
        *(head(key, True) for key in keys),
        *(Column(name, True) for name in ("parameters", "packed size", "bits per parameter")),
    ]
    return Table("quantizers", tuple(columns), tuple(drawn)), notes


def ranked_table(ranked: pd.DataFrame, varying: Sequence[str], scores: ScoresOf = lambda row: {}) -> Table:
    """The leaderboard: `Comparable.ranked`. The first `SHOWN` are held against the best."""
    lowest = ranked["eval_loss"].min()
    seeds = bool((ranked["seeds"] > 1).any())
    keys = [key for key in varying if not (seeds and key == "seed")]
    best = scores(rows(ranked.head(1))[0])
    lines = [
        (
            cell(str(row["place"]), row["place"]),
            cell(names(row["trials"], 3)),
            loss_cell(row),
            cell(gap(row["eval_loss"] - lowest), row["eval_loss"] - lowest),
            between(paired(best, scores(row)) if 0 < number < SHOWN else None),
            *([cell(str(row["seeds"]), row["seeds"])] if seeds else []),
            *_config(row, keys),
            cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
        )
        for number, row in enumerate(rows(ranked))
    ]
    columns = [
        *(Column("place", True), Column("trials" if seeds else "trial")),
        *(Column(name, True) for name in ("eval loss", "gap to best", "95 % interval of the gap")),
        *([Column("seeds", True)] if seeds else []),
        *(*_heads(keys, ranked), Column("packed size", True)),
    ]
    return Table("leaderboard", tuple(columns), tuple(lines), SHOWN)


def confirmed_table(groups: Comparable, varying: Sequence[str], scores: ScoresOf) -> Table:
    """The configurations that were tried again: their test loss, and what the search had said of them."""
    leader = rows(groups.confirmed.head(1))[0]
    keys = [key for key in varying if key != "seed"]
    searched = {trial: row for row in rows(groups.ranked) for trial in row["trials"]}
    lines = []
    for row in rows(groups.confirmed):
        first = row["trial_id"] == leader["trial_id"]
        apart = row["test_loss"] - leader["test_loss"]
        before = searched.get(row["name"], {})
        lines.append(
            (
                cell(str(row["place"]), row["place"]),
                cell(plain(row["name"], 60)),
                cell(str(row["seeds"]), row["seeds"]),
                loss_cell(row, "test_loss"),
                cell(gap(apart), apart),
                between(None if first else paired(scores(leader), scores(row))),
                cell(loss(row["eval_loss"]), row["eval_loss"]),
                cell(loss(before.get("eval_loss")), before.get("eval_loss")),
                *_config(row, keys),
                cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
            )
        )
    columns = [
        *(Column("place", True), Column("configuration of"), Column("seeds", True)),
        *(Column(n, True) for n in ("test loss", "gap to best", "95 % interval of the gap")),
        *(Column(n, True) for n in ("eval loss on these seeds", "in the search")),
        *(*_heads(keys, groups.confirmed), Column("packed size", True)),
    ]
    return Table("confirmed", tuple(columns), tuple(lines))


def unranked_table(name: str, trials: pd.DataFrame, varying: Sequence[str]) -> Table:
    """Trials that stopped at different steps: `Comparable.pruned` or `Comparable.other`."""
    lines = [
        (
            cell(plain(row["trial_id"], 60)),
            cell(f"{whole(row['steps'])} of {whole(row['budget'])}", row["steps"]),
            loss_cell(row),
            *_config(row, varying),
        )
        for row in rows(trials)
    ]
    columns = (Column("trial"), Column("step reached", True), Column("eval loss there", True), *_heads(varying, trials))
    return Table(name, columns, tuple(lines))


def endings_table(lines: Sequence[Ending]) -> Table:
    """How many trials ended how, and why."""
    drawn = [
        (
            cell(plain(line.status)),
            cell(f"{len(line.trial_ids):,}", len(line.trial_ids)),
            cell(names(line.trial_ids)),
            cell(plain(line.reason) or NOTHING),
        )
        for line in lines
    ]
    columns = (Column("status"), Column("trials", True), Column("which"), Column("reason"))
    return Table("endings", columns, tuple(drawn))


def front_table(front: pd.DataFrame, varying: Sequence[str]) -> Table:
    """The configurations that no other beats in loss, bytes and training at once."""
    lines = [
        (
            cell(plain(row["trial_id"], 60)),
            loss_cell(row),
            cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
            cell(whole(row["tokens"]), row["tokens"]),
            *_config(row, varying),
        )
        for row in rows(front)
    ]
    columns = (
        *(Column("trial"), Column("eval loss", True), Column("packed size", True), Column("tokens trained", True)),
        *_heads(varying, front),
    )
    return Table("pareto", columns, tuple(lines))
