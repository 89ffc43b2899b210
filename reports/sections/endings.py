"""How the trials ended and why, what a person did to the sweep, and what could not be read of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from bitlora.files.record import STATUSES
from reports.document.cells import cell, counted, names
from reports.document.document import NOTHING, Bullets, Column, Table, plain
from reports.load.folder import UNKNOWN
from reports.load.sweep import Sweep
from reports.load.values import as_text
from reports.sections.parts import Section, section
from reports.statistics.endings import BAD, Ending, Shared, endings, in_common
from reports.statistics.findings import Findings

PROBLEMS: Final = 30
"""Files that could not be read, of which a report says what is wrong."""


def how_trials_ended(findings: Findings) -> Section | None:
    """How many trials ended how, why, and what those that ended badly have in common; nothing where none began."""
    title, trials = "How the trials ended", findings.sweep.trials
    if trials.empty:
        return None
    shared = in_common(findings.searched, findings.axes.varying)
    table = endings_table(endings(trials))
    badly = trials["status"].isin(BAD).any()
    common = shared_values(shared) if shared else None
    return section(
        title,
        counts(findings.sweep),
        table,
        common,
        folded="" if badly else "Counts, which and why: no trial ended badly",
    )


def steered(findings: Findings) -> Section | None:
    """Who stopped, extended, cloned, added trials or asked for more, when, and to what end; nothing where nobody did."""
    acts = findings.sweep.steered
    if not acts:
        return None
    columns = tuple(Column(name) for name in ("when (UTC)", "who", "what", "result"))
    rows = tuple(tuple(cell(_said(act, key)) for key in ("at", "by", "what", "result")) for act in acts)
    return section("Steered", Table("steered", columns, rows))


def problems(findings: Findings) -> Section | None:
    """What could not be read or used; nothing where all could."""
    title, lines = "Problems on disk", findings.sweep.problems
    if not lines:
        return None
    rest = f"and {len(lines) - PROBLEMS:,} more" if len(lines) > PROBLEMS else None
    return section(title, Bullets(tuple((plain(line, 300),) for line in lines[:PROBLEMS])), rest)


def counts(sweep: Sweep) -> str:
    """How many trials ended how."""
    count = Counter(sweep.trials["status"])
    ended = [f"{count[status]:,} {status}" for status in (*STATUSES, UNKNOWN) if count[status]]
    return f"{counted(len(sweep.trials), 'trial')}: {', '.join(ended)}."


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


def shared_values(found: Sequence[Shared]) -> Bullets:
    """What trials that ended badly have in common."""
    items = [
        (
            f"All {line.trials} {line.status} trials have {line.axis.replace('_', ' ')} {line.values};"
            f" of {counted(line.of, 'other')}, {line.others or 'none'} {'has' if line.others == 1 else 'have'} that.",
        )
        for line in found
    ]
    return Bullets(tuple(items))


def _said(act: dict[str, Any], key: str) -> str:
    return plain(as_text(act[key]).removesuffix("+00:00"), 300) if act.get(key) else NOTHING
