"""What mattered, and the eval loss axis by axis."""

from __future__ import annotations

from typing import Final

from reports.figures import figures
from reports.sections.parts import Section, section
from reports.statistics.findings import Findings
from reports.statistics.importances import importances

HINT: Final = 50
"""Trials below which what mattered is a hint."""


def mattered(findings: Findings) -> Section | None:
    """Which axes set the best trials apart from all; nothing where none ranks."""
    ranked = findings.groups.ranked
    if ranked.empty:
        return None
    searched = findings.searched
    equal = searched[searched["trial_id"].isin({trial for group in ranked["trials"] for trial in group})]
    found = importances(equal, len(searched), findings.axes.varying, findings.space)
    figure = figures.importance(found)
    if figure is None:
        return section("What mattered", f"Too few trials at equal budget to say: {found.used} of {found.of}.")
    few = " With so few trials this is a hint at most." if found.used < HINT else ""
    over = f"over {found.used} of {found.of} trials at equal budget"
    words = f"What sets the best {found.best} apart from all, {over}: the share of each axis.{few}"
    return section("What mattered", words, figure)


def slices(findings: Findings) -> Section | None:
    """The eval loss over single axes; nothing where none of them varies."""
    figure = figures.slices(findings.sweep, findings.groups, findings.axes.varying)
    return section("Axis by axis", figure) if figure else None
