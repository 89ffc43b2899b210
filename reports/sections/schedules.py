"""How the values of trials moved under way: of members of a population, and of those that repeat their schedules."""

from __future__ import annotations

from typing import Any, Final

from bitlora.config.sections import MOVED
from reports.document.cells import cell, head, loss, value
from reports.document.document import NOTHING, Code, Column, Paragraph, Table, plain
from reports.sections.parts import Section, section
from reports.statistics.comparable import rows
from reports.statistics.findings import Findings

SHOWN: Final = 10
"""Trials, the best first."""
KEYS: Final = tuple(key for key in MOVED if key != "steps")


def schedules(findings: Findings) -> Section | None:
    """What each trial had until which step, and whose steps those are; nothing where no values moved."""
    moved = findings.sweep.schedules
    if not moved:
        return None
    trials = [row for row in rows(findings.sweep.trained) if row["trial_id"] in moved]
    trials.sort(key=lambda row: (row["status"] != "completed", not row["eval_loss"] < float("inf"), row["eval_loss"]))
    lines = [line for row in trials[:SHOWN] for line in _lines(row, moved[row["trial_id"]])]
    columns = [Column("trial"), Column("eval loss", True), Column("until step", True), Column("steps of")]
    table = Table("schedules", (*columns, *(head(key, True) for key in KEYS)), tuple(lines))
    more = f" The best {SHOWN} of {len(trials):,} are shown." if len(trials) > SHOWN else ""
    told = Paragraph(
        (
            "A trial that went on as a copy of another has that one's steps behind it, with the values that they had."
            " The list ",
            Code("schedule"),
            " of its record, given as ",
            Code("train.stages"),
            f", trains it again from that alone.{more}",
        )
    )
    return section("How values moved", told, table)


def _lines(row: Any, stages: Any) -> list[tuple[Any, ...]]:
    name = plain(str(row["trial_id"]), 60)
    last = {"until": row["steps"], "trial": None, **{key: row.get(f"config.{key}") for key in KEYS}}
    return [
        (
            cell(name if place == 0 else ""),
            cell(loss(row["eval_loss"]) if place == 0 else "", row["eval_loss"]),
            cell(value("until", stage.get("until")), stage.get("until")),
            cell(plain(str(stage.get("trial") or name), 60) or NOTHING),
            *(cell(value(key, stage.get(key)), stage.get(key)) for key in KEYS),
        )
        for place, stage in enumerate([*stages, last])
    ]
