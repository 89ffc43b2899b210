"""The report of a sweep, made from what is on disk alone: a document, its tables and its figures.

The same records give the same bytes: it holds no time of its own making and no path of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitlora.files.writing import replacing, write_json, write_text
from reports.document.document import Document, plain
from reports.figures.figures import Plot, pointed
from reports.figures.style import drawn
from reports.load.sweep import Sweep, load_sweep
from reports.pages.comparison import comparison
from reports.pages.summary import SUMMARY, summary
from reports.pages.versus import Control, versus
from reports.sections import (
    axes,
    endings,
    leaderboard,
    quality_size,
    quantizers,
    repeat,
    schedules,
    set_up,
    soup,
    training,
    verdict,
)
from reports.sections.measured import metrics
from reports.sections.parts import Section
from reports.statistics.comparable import rows
from reports.statistics.findings import Findings, findings
from reports.writers.csv_table import csv_table
from reports.writers.html import html
from reports.writers.latex import latex
from reports.writers.markdown import markdown

REPORT: Final = "report.md"
CSV: Final = "trials.csv"

SECTIONS: Final[tuple[Callable[[Findings], Section | None], ...]] = (
    verdict.who_won,
    set_up.set_up,
    leaderboard.confirmed,
    soup.soup,
    metrics.by_metrics,
    quantizers.side_by_side,
    quantizers.full_precision,
    leaderboard.leaderboard,
    schedules.schedules,
    quality_size.quality_size,
    axes.mattered,
    training.learning_curves,
    axes.slices,
    training.budget_and_speed,
    leaderboard.other_budgets,
    leaderboard.pruned,
    endings.how_trials_ended,
    endings.steered,
    endings.problems,
    repeat.repeat,
)
"""What a report consists of, in this order: each makes its section of what was found, None where it has nothing to say.

To add one: write a module in `reports/sections/` with a function of `Findings` that returns
`section("Its heading", "a paragraph", a_table, a_figure)`; put that function into this table where it is to stand; and
hold it by a test in `tests/reports/sections/`. Its tables and figures are written as files without more ado.
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What is written: the document, and the figures in it with their data."""

    document: Document
    plots: tuple[Plot, ...]


def write_report(folders: Sequence[Path], out: Path | None = None, against: Control | None = None) -> Path:
    """Write report.md, report.html, trials.csv (every trial, with its `place` where it has one), summary.json (the verdict
    in a line, and more for a dashboard), `tables/` and `figures/`.

    Args:
        folders: the folder of a sweep, or of several that are to be compared; then there is no trials.csv
            and no summary.json.
        out: the folder to write to, made if needed; None: `report` in the sweep's folder, `comparison` beside the first of
            several.
        against: hold every configuration against this one, as with several; None: with several compare the best of each.

    Returns:
        The path of report.md.

    Raises:
        ValueError: no folder, no sweep's folder, or `out` is a file; one line for the user.
        OSError: it cannot be written.
    """
    if not folders:
        raise ValueError("no folder given: a report needs the folder of a sweep")
    sweeps = [load_sweep(folder) for folder in folders]
    several = len(sweeps) > 1 or against is not None
    if out is None:
        out = folders[0].parent / "comparison" if several else folders[0] / "report"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; the report needs a folder")
    if against is not None:
        made = Report(*versus(sweeps, against))
    elif several:
        made = Report(*comparison(sweeps))
    else:
        found = findings(sweeps[0])
        made = _report(found)
        write_text(out / CSV, trials_csv(found))
        write_json(out / SUMMARY, summary(found))
    for table in made.document.tables:
        write_text(out / "tables" / f"{table.name}.csv", csv_table(table))
        write_text(out / "tables" / f"{table.name}.tex", latex(table))
    pictures, curves = {}, {}
    for plot in made.plots:
        picture = drawn(plot.draw)
        if picture is None:
            continue
        stem = out / "figures" / plot.figure.name
        write_text(stem.with_suffix(".csv"), plot.data.to_csv(index=False, lineterminator="\n"))
        write_text(stem.with_suffix(".svg"), picture.light)
        write_text(stem.with_name(f"{stem.name}-dark.svg"), picture.dark)
        with replacing(stem.with_suffix(".png")) as part:
            part.write_bytes(picture.png)
        pictures[plot.figure.name] = (picture.light, picture.dark)
        if plot.curves is not None and picture.plane is not None:
            curves[plot.figure.name] = pointed(plot.curves, picture.plane)
    write_text(out / "report.html", html(made.document, pictures, curves))
    write_text(out / REPORT, markdown(made.document))
    return out / REPORT


def trials_csv(found: Findings) -> str:
    """Every trial as CSV, by trial_id: `Sweep.trials`, the `place` of those that rank, and where the base was scored its
    eval loss, and what share of the gain over it those that rank keep, with the interval of it. A trial that has another's
    result has these of that one; where none has, there is no `same_as`."""
    held = {trial: row for row in rows(found.groups.ranked) for trial in row["trials"]}
    ranked = {trial: held[first] for trial, first in found.sweep.firsts.items() if first in held}
    table = found.sweep.trials.copy()
    if table["same_as"].isna().all():
        del table["same_as"]
    table.insert(1, "place", table["trial_id"].map({t: row["place"] for t, row in ranked.items()}).astype("Int64"))
    if (gains := found.gains) is not None:
        kept = {t: gains.kept(row | {"loss": row["eval_loss"]}) for t, row in ranked.items()}
        table["base_loss"] = gains.base
        for column, part in (("gain_kept", "share"), ("gain_kept_low", "low"), ("gain_kept_high", "high")):
            told = {trial: getattr(each, part) for trial, each in kept.items() if each is not None}
            table[column] = table["trial_id"].map(told).astype("float64")
    return table.to_csv(index=False, lineterminator="\n")


def report(sweep: Sweep) -> Report:
    """The report on `sweep`: its `SECTIONS`."""
    return _report(findings(sweep))


def _report(found: Findings) -> Report:
    sections = [made for make in SECTIONS if (made := make(found)) is not None]
    blocks = tuple(block for section in sections for block in section.blocks)
    plots = tuple(plot for section in sections for plot in section.plots)
    return Report(Document(f"Sweep {plain(found.sweep.name)}", blocks), plots)
