"""Every configuration of some sweeps against one of them: a sweep's best, or the one of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, NamedTuple

from bitlora.files.record import EVAL, TEST
from reports.document.cells import cell, counted, size, value
from reports.document.document import NOTHING, Block, Cell, Column, Document, Heading, Paragraph, Strong, Table, plain
from reports.figures.figures import Plot, gaps_of
from reports.load.scores import scores_of
from reports.load.sweep import Sweep
from reports.pages.comparison import SHOWN, configuration, differences
from reports.pages.contenders import Contender, labels, same_text, unit_of
from reports.sections.parts import KEPT, interval_cell, kept_cell, kept_columns
from reports.statistics.comparable import Row, ScoresOf, comparable, rows
from reports.statistics.gain import Gains, gains
from reports.statistics.paired import Interval, together
from reports.statistics.verdict import in_full

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


@dataclass(frozen=True, slots=True)
class Side:
    """One of the sweeps, on the split that is compared."""

    label: str
    sweep: Sweep
    split: str
    configurations: tuple[Row, ...]
    """Those that may be compared, the best first, with their `loss` on the split."""
    read: ScoresOf

    @classmethod
    def of(cls, label: str, sweep: Sweep, split: str) -> Side:
        groups = comparable(sweep)
        frame, name = (groups.confirmed, TEST) if split == "test" else (groups.ranked, EVAL)
        found = rows(frame.assign(loss=frame[f"{split}_loss"]))
        return cls(label, sweep, split, found, scores_of(sweep, name))

    def gains(self, held: Sequence[Contender]) -> Gains | None:
        """What those of `held` that are its own keep of the gain of its best in full precision over its base; None where
        none is, or nobody scored its base."""
        own = [one.row for one in held if one.sweep is self.sweep]
        bare = self.sweep.bare
        if not own or bare is None:
            return None
        on_split = bare.test if self.split == "test" else bare.eval
        return gains(on_split, in_full(self.configurations), own, self.read)


def versus(sweeps: Sequence[Sweep], against: Control) -> tuple[Document, tuple[Plot, ...]]:
    """The document that holds every configuration of `sweeps` against one.

    Raises:
        ValueError: there is no such configuration, or nothing of its scores; one line for the user.
    """
    named = list(zip(labels(sweeps), sweeps, strict=True))
    control = _control(*named[against.sweep], against.trial)
    sides = [Side.of(label, sweep, control.split) for label, sweep in named]
    of_each = [_of_side(side, control) for side in sides]
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
    gained = [side.gains([control, *scored]) for side in sides]
    kept = {id(side.sweep): found for side, found in zip(sides, gained, strict=True) if kept_columns(found)}
    if kept and lines:
        notes.append(
            "Gain kept: how far the loss is below that of the base without an adapter, in per cent of what the best in full"
            " precision of the same sweep is below it, with a 95 % interval of each by itself."
        )
    notes += [
        f"No share of the gain over the base is told of {plain(side.label, 60)}: {found.untold}."
        for side, found in zip(sides, gained, strict=True)
        if found is not None and found.untold
    ]
    blocks += [Paragraph((" ".join(notes),), note=True)] if notes else []
    plots: tuple[Plot, ...] = ()
    if lines:
        blocks += [Heading(2, plain(f"Against {name}", 100)), _table(lines, control, scale * base, unit, kept)]
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


def _of_side(side: Side, control: Contender) -> list[Contender]:
    """Its configurations without `control`."""
    found = list[Contender]()
    for row in side.configurations:
        if side.sweep is control.sweep and row["trial_id"] == control.row["trial_id"]:
            continue
        scores = side.read(row) if len(found) < MOST else {}  # beyond that it is counted alone
        found.append(Contender(side.label, side.sweep, row, side.split, scores))
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


def _table(
    lines: Sequence[Held], control: Contender, base: float, unit: str, kept: Mapping[int, Gains | None]
) -> Table:
    """`kept`: by the sweep's place in memory, where shares of the gain are told."""

    def cells(one: Contender, loss: float, line: Held | None) -> tuple[Cell, ...]:
        row: Row = one.row
        return (
            cell(plain(one.label, 60)),
            cell(plain(row["name"], 60)),
            cell(f"{loss:.4f}", loss),
            cell("0" if line is None else f"{line.apart:+.4f}", line.apart if line else 0.0),
            interval_cell(line.interval if line else None),
            cell("held against" if line is None else line.word),
            *((kept_cell(kept.get(id(one.sweep)), row, f"{one.split}_loss") or [Cell(NOTHING)]) if kept else []),
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
        *(Column("95 % interval of that", True), Column("for sure")),
        *([Column(KEPT, True)] if kept else []),
        Column("seeds", True),
        *(Column(key.replace("_", " ")) for key in SHOWN),
        Column("packed size", True),
    )
    return Table("against", columns, tuple(drawn), 60)
