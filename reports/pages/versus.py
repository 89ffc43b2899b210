"""Every configuration of some sweeps against one of them: a sweep's best, or the one of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, NamedTuple

from bitlora.files.record import EVAL, TEST
from reports.document.cells import cell, counted, size, value
from reports.document.document import Block, Cell, Column, Document, Heading, Paragraph, Strong, Table, plain
from reports.figures.figures import Plot, gaps_of
from reports.load.scores import scores_of
from reports.load.sweep import Sweep
from reports.pages.comparison import SHOWN, configuration, differences
from reports.pages.contenders import Contender, labels, same_text, unit_of
from reports.sections.parts import interval_cell
from reports.statistics.comparable import Row, comparable, rows
from reports.statistics.paired import Interval, together

MOST: Final = 100
"""Configurations of all sweeps together, the lowest of each first: more are not judged at once."""
DRAWN: Final = 30


class Control(NamedTuple):
    """What the others are held against."""

    sweep: int
    """Its place among the sweeps."""
    trial: str | None = None
    """None: the best of the sweep."""


@dataclass(frozen=True, slots=True)
class Held:
    """A configuration beside the one that it is held against."""

    one: Contender
    loss: float
    apart: float
    """How far it is above; below zero it is the better one."""
    interval: Interval | None

    @property
    def word(self) -> str:
        """What is sure of it."""
        if self.interval is None:
            return "no interval"
        return "tied" if not self.interval.decided else "worse" if self.apart > 0 else "better"


def versus(sweeps: Sequence[Sweep], against: Control) -> tuple[Document, tuple[Plot, ...]]:
    """The document that holds every configuration of `sweeps` against one.

    Raises:
        ValueError: there is no such configuration, or nothing of its scores; one line for the user.
    """
    named = list(zip(labels(sweeps), sweeps, strict=True))
    control = _control(*named[against.sweep], against.trial)
    of_each = [_of_sweep(label, sweep, control) for label, sweep in named]
    # In turn of each, so that a large sweep leaves room for a small one.
    found = [one for turn in zip_longest(*of_each) for one in turn if one is not None]
    held, left = found[:MOST], found[MOST:]
    scored = [one for one in held if one.scores and same_text(control, one)]
    others = len(held) - len(scored)
    unit, per, scale = unit_of([control, *scored])
    base = control.loss(per)
    intervals = together(control.scores, [one.scores for one in scored], per)
    lines = [
        Held(one, scale * one.loss(per), scale * (one.loss(per) - base), interval and interval.scaled(scale))
        for one, interval in zip(scored, intervals, strict=True)
    ]
    lines.sort(key=lambda line: (line.loss, line.one.label, str(line.one.row["trial_id"])))
    name = f"{control.label}: {control.row['name']}"
    blocks: list[Block] = [_sentence(control, lines, name, scale * base, unit)]
    notes = []
    if others:
        notes.append(f"Left out: {counted(others, 'configuration')} without scores of the same text.")
    if left:
        notes.append(f"Left out: {counted(len(left), 'configuration')} further behind.")
    if control.split == "eval":
        notes.append("Losses are those that were tuned on: the best of many is flattered by having been picked.")
    if len(lines) > 1:
        notes.append(
            f"All {1 + len(lines)} are judged together (Tukey's range, step by step): with 95 % none that is truly equal is"
            " called better or worse, whichever of them they are held against."
        )
    blocks += [Paragraph((" ".join(notes),), note=True)] if notes else []
    plots: tuple[Plot, ...] = ()
    if lines:
        blocks += [Heading(2, plain(f"Against {name}", 100)), _table(lines, control, scale * base, unit)]
        drawn: list[tuple[str, str, float, Interval | None]] = [(name, str(control.row["config.quantizer"]), 0.0, None)]
        drawn += [
            (
                f"{line.one.label}: {line.one.row['name']}",
                str(line.one.row["config.quantizer"]),
                line.apart,
                line.interval,
            )
            for line in lines[:DRAWN]
        ]
        if (plot := gaps_of(drawn, "each configuration", "against", unit, plain(name, 60))) is not None:
            plots = (plot,)
            blocks.append(plot.figure)
    if len(sweeps) > 1:
        blocks += [Heading(2, "What differs"), *differences(named)]
    return Document(plain(f"Against {name}", 100), tuple(blocks)), plots


def _control(label: str, sweep: Sweep, trial: str | None) -> Contender:
    groups = comparable(sweep)
    for frame, name in ((groups.confirmed, TEST), (groups.ranked, EVAL)):
        for row in rows(frame):
            if trial is None or trial == row["name"] or sweep.firsts.get(trial) in row["trials"]:
                scores = scores_of(sweep, name)(row)
                if not scores:
                    raise ValueError(
                        f"{label}: the {name} of {row['name']} cannot be read, so nothing is held against it"
                    )
                return Contender(label, sweep, row, name.removesuffix(".parquet"), scores)
    if trial is None:
        raise ValueError(f"{label}: no trial completed its full budget with a finite eval loss")
    if trial in sweep.longer:
        raise ValueError(f"{label}: {trial} was given more steps than the others have, so nothing is held against it")
    raise ValueError(f"{label}: {trial} is no trial of it that completed its full budget with a finite eval loss")


def _of_sweep(label: str, sweep: Sweep, control: Contender) -> list[Contender]:
    """The configurations of a sweep that were scored on the split of `control`, without that one."""
    groups = comparable(sweep)
    frame, name = (groups.confirmed, TEST) if control.split == "test" else (groups.ranked, EVAL)
    read, found = scores_of(sweep, name), list[Contender]()
    for row in rows(frame):
        if sweep is control.sweep and row["trial_id"] == control.row["trial_id"]:
            continue
        scores = read(row) if len(found) < MOST else {}  # beyond that it is counted alone
        found.append(Contender(label, sweep, row, control.split, scores))
    return found


def _sentence(control: Contender, lines: Sequence[Held], name: str, loss: float, unit: str) -> Paragraph:
    said = ", ".join(
        f"{sum(line.word == word for line in lines)} {word}"
        for word in ("better", "tied", "worse", "no interval")
        if any(line.word == word for line in lines)
    )
    about = f" ({configuration(control.row)}), {loss:.4f} {unit} on the {control.split} split: "
    of = counted(len(lines), "configuration")
    told = f"of {of} {said}." if lines else "there is nothing else to hold against it."
    return Paragraph(("Against ", Strong(plain(name, 100)), about, told))


def _table(lines: Sequence[Held], control: Contender, base: float, unit: str) -> Table:
    def cells(one: Contender, loss: float, line: Held | None) -> tuple[Cell, ...]:
        row: Row = one.row
        return (
            cell(plain(one.label, 60)),
            cell(plain(row["name"], 60)),
            cell(f"{loss:.4f}", loss),
            cell("0" if line is None else f"{line.apart:+.4f}", line.apart if line else 0.0),
            interval_cell(line.interval if line else None),
            cell("held against" if line is None else line.word),
            cell(str(len(one.scores)), len(one.scores)),
            *(cell(value(key, row.get(f"config.{key}")), row.get(f"config.{key}")) for key in SHOWN),
            cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
        )

    above = [line for line in lines if line.loss <= base]
    drawn = [
        *(cells(line.one, line.loss, line) for line in above),
        cells(control, base, None),
        *(cells(line.one, line.loss, line) for line in lines[len(above) :]),
    ]
    columns = (
        *(Column("sweep"), Column("configuration"), Column(f"loss ({unit})", True), Column("above it", True)),
        *(Column("95 % interval of that", True), Column("for sure"), Column("seeds", True)),
        *(Column(key.replace("_", " ")) for key in SHOWN),
        Column("packed size", True),
    )
    return Table("against", columns, tuple(drawn), 60)
