"""The soup: the average of the tied finalists, and whether it is better than each of them."""

from __future__ import annotations

import numpy as np

from reports.document.cells import cell, counted, loss, names
from reports.document.document import Column, Paragraph, Strong, Table, plain
from reports.load.soup import Soup
from reports.sections.parts import Section, interval_cell, section
from reports.statistics.findings import Findings
from reports.statistics.paired import Interval, Scores, together


def soup(findings: Findings) -> Section | None:
    """What averaging the finalists came to, on the test split; nothing where nobody averaged them."""
    found = findings.sweep.soup
    if found is None:
        return None
    own = mean_loss(found.scores)
    others = {name: mean_loss(scores) for name, scores in found.of.items()}
    intervals = dict(zip(others, together(found.scores, list(found.of.values())), strict=True))
    of = names([plain(name, 30) for name in others])
    what = (
        f"The average of {of}, seed by seed, of A and of B each by itself, quantized as they were: the shape and the bytes "
        f"of one of them. All were scored by one loop on the {counted(len(next(iter(found.scores.values()))), 'row')} of "
        f"the test split, on {counted(len(found.scores), 'seed')}."
    )
    return section(
        "A soup of the finalists", what, sentence(own, others, intervals), _table(own, found, others, intervals)
    )


def sentence(own: float, others: dict[str, float], intervals: dict[str, Interval | None]) -> Paragraph:
    """Whether it is better, as far as that is sure."""
    scored, least = f"its test loss is {loss(own)}", min(others.values())
    if own >= least:
        return Paragraph((Strong("The soup is not better"), f": {scored}, the best of them has {loss(least)}."))
    if all(interval is not None and interval.behind for interval in intervals.values()):
        return Paragraph(
            (Strong("The soup is better than each of them"), f" with 95 %, all judged together: {scored}.")
        )
    return Paragraph(
        (Strong("The soup has the lowest loss, and may be no better"), f": {scored}; not every interval is above zero.")
    )


def mean_loss(scores: Scores) -> float:
    """Nats per completion token, a mean over the seeds."""
    return float(np.mean([table["loss"].sum() / table["tokens"].sum() for table in scores.values()]))


def _table(own: float, found: Soup, others: dict[str, float], intervals: dict[str, Interval | None]) -> Table:
    lines = [(cell("soup"), cell(loss(own), own), cell("–"))]
    for name in sorted(others, key=others.__getitem__):
        lines.append((cell(plain(name, 60)), cell(loss(others[name]), others[name]), interval_cell(intervals[name])))
    columns = (Column("adapter"), Column("test loss", True), Column("above the soup, 95 %", True))
    return Table("soup", columns, tuple(lines))
