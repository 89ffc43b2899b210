"""What mattered, and the eval loss axis by axis."""

from __future__ import annotations

import pandas as pd

from reports.document.document import plain
from reports.figures import figures
from reports.sections.parts import Section, section
from reports.statistics.findings import Findings
from reports.statistics.importances import FEWEST, importances


def mattered(findings: Findings) -> Section | None:
    """Which axes set the best trials apart from all; nothing where too few rank to tell it from chance."""
    ranked = findings.groups.ranked
    searched = findings.searched
    equal = searched[searched["trial_id"].isin({trial for group in ranked["trials"] for trial in group})]
    found = importances(equal, len(searched), findings.axes.varying, findings.space)
    if found.used < FEWEST:
        return None
    of = f"{found.used} of {found.of}"
    if found.shares.empty:
        return section("What mattered", f"Nothing sets the best of the trials at equal budget ({of}) apart.")
    told, chance = (_named(found.shares[found.shares["told"] == whether]) for whether in (True, False))
    words = f"What sets the best {found.best} apart from all, over {of} trials at equal budget: the share of each axis,"
    words += " against the share that it gets by chance, shuffled over the trials (95 %, all axes together). "
    words += f"Beyond chance: {told}." if told else "No axis is beyond chance, so nothing is drawn."
    words += f" Within chance: {chance}." if chance else ""
    return section("What mattered", words, figures.importance(found) if told else None)


def _named(shares: pd.DataFrame) -> str:
    """`learning rate (0.61, chance 0.34), rank (…)`."""
    parts = [
        f"{plain(line['axis'], 40).replace('_', ' ')} ({line['importance']:.2f}, chance {line['chance']:.2f})"
        for line in shares.to_dict("records")
    ]
    return ", ".join(parts)


def slices(findings: Findings) -> Section | None:
    """The eval loss over single axes; nothing where none of them varies."""
    figure = figures.slices(findings.sweep, findings.groups, findings.axes.varying)
    return section("Axis by axis", figure, folded="The eval loss over each number that was varied") if figure else None
