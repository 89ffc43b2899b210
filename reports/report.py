"""The report of a sweep, made from what is on disk alone: a document, its tables and its figures.

The same records give the same bytes: it holds no time of its own making and no path of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from bitlora.record import EVAL, STATUSES, TEST, replacing, write_text
from reports import figures, tables
from reports.against import against, against_plot, against_table
from reports.cells import cell, counted, percent, seconds, whole
from reports.compare import comparison
from reports.csv_table import csv_table
from reports.document import Block, Bullets, Column, Document, Heading, Paragraph, Table, plain
from reports.figures import COSTS, Plot
from reports.html import html
from reports.insight import Importances, Shared, importances, in_common
from reports.insight import budget as budget_of
from reports.latex import latex
from reports.load import UNKNOWN, Sweep, load_sweep, scores_of
from reports.markdown import markdown
from reports.setup import counts, mapping, repeat, set_up
from reports.stats import Comparable, comparable, pareto, rows, verdict
from reports.style import drawn
from reports.verdict import note, sentence

REPORT: Final = "report.md"
CSV: Final = "trials.csv"
HINT: Final = 50
"""Trials below which what mattered is a hint."""
PROBLEMS: Final = 30
"""Files that could not be read, of which a report says what is wrong."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is written: the document, and the figures in it with their data."""

    document: Document
    plots: tuple[Plot, ...]


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.md, report.html, trials.csv (every trial, with its `place` where it has one), `tables/` and `figures/`.

    Args:
        folders: the folder of a sweep, or of several that are to be compared; then there is no trials.csv.
        out: the folder to write to, made if needed; None: `report` in the sweep's folder, `comparison` beside the first of
            several.

    Returns:
        The path of report.md.

    Raises:
        ValueError: no folder, no sweep's folder, or `out` is a file; one line for the user.
        OSError: it cannot be written.
    """
    if not folders:
        raise ValueError("no folder given: a report needs the folder of a sweep")
    sweeps = [load_sweep(folder) for folder in folders]
    several = len(sweeps) > 1
    if out is None:
        out = folders[0].parent / "comparison" if several else folders[0] / "report"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; the report needs a folder")
    made = Report(*comparison(sweeps)) if several else report(sweeps[0])
    if not several:
        write_text(out / CSV, trials_csv(sweeps[0]))
    for table in (block for block in made.document.blocks if isinstance(block, Table)):
        write_text(out / "tables" / f"{table.name}.csv", csv_table(table))
        write_text(out / "tables" / f"{table.name}.tex", latex(table))
    pictures = {}
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
    write_text(out / "report.html", html(made.document, pictures))
    write_text(out / REPORT, markdown(made.document))
    return out / REPORT


def trials_csv(sweep: Sweep) -> str:
    """Every trial as CSV, by trial_id: `Sweep.trials`, and the `place` of those that rank."""
    ranked = comparable(sweep.trials).ranked
    places = {trial: row["place"] for row in rows(ranked) for trial in row["trials"]}
    table = sweep.trials.copy()
    table.insert(1, "place", table["trial_id"].map(places).astype("Int64"))
    return table.to_csv(index=False, lineterminator="\n")


def report(sweep: Sweep) -> Report:
    """The report on `sweep`."""
    trials, groups = sweep.trials, comparable(sweep.trials)
    searched = trials[trials["config.confirms"].isna()]
    space = mapping(sweep.spec, "search", "space")
    axes = tables.axes(searched, space)
    choices = space.get("quantizer", mapping(sweep.spec, "adapter").get("quantizer"))
    asked = [name for name in (choices if isinstance(choices, list) else [choices]) if isinstance(name, str)]
    confirmed = len(groups.confirmed) > 0
    on_eval, on_test = scores_of(sweep, EVAL), scores_of(sweep, TEST)
    said = verdict(groups.contest, on_test if confirmed else on_eval)
    lines = tables.quantizer_bests(searched, groups, asked, on_eval)
    best = str(said.best[0]["name"]) if said.best else None
    mattered = importances(_equal(searched, groups), len(searched), axes.varying, space)
    spent = budget_of(trials)
    plots: list[Plot] = []

    def plot(made: Plot | None) -> list[Block]:
        plots.extend([made] if made else [])
        return [made.figure] if made else []

    blocks: list[Block] = [sentence(said, len(trials), axes, confirmed), *([note(said, groups)] if said.best else [])]
    blocks += [Heading(2, "Set-up"), set_up(sweep, axes)]
    if confirmed:
        blocks += [
            Heading(2, "Confirmed"),
            _text(
                "The best of the search once more, on seeds that it had not used, scored on the test split:"
                f" {_rows(sweep)} that nobody was tuned on."
            ),
            tables.confirmed_table(groups, axes.varying, on_test),
        ]
    blocks += [Heading(2, "Quantizers side by side")]
    if lines:
        table, notes = tables.quantizer_table(lines, axes.varying)
        blocks += [table, *map(_text, notes), *plot(figures.gaps(groups, lines, on_test))]
    else:
        blocks += [_text("No trial, and no quantizer asked for.")]
    low, on = against(groups.contest, on_test if confirmed else on_eval), "test" if confirmed else "eval"
    if not low and confirmed:  # full precision, or all else, is not among the confirmed
        low, on = against(groups.ranked.assign(loss=groups.ranked["eval_loss"]), on_eval), "eval"
    if low:
        blocks += [
            Heading(2, "Against full precision"),
            _text(
                "The best of each quantizer against the best in full precision: how far its loss is above, in per cent, and"
                " its size in per cent of full precision's."
            ),
            against_table(low, on),
            *plot(against_plot(low)),
        ]
    blocks += [Heading(2, "Leaderboard")]
    if groups.ranked.empty:
        blocks += [_text("No trial completed its full budget with a finite eval loss.")]
    else:
        held = sum(len(group) for group in groups.ranked["trials"])
        budget = groups.ranked["budget"].iloc[0]
        of = f"{counted(held, 'trial')} at equal budget: {budget:,} optimizer steps, all completed."
        some = f" Intervals are those of the first {tables.SHOWN}." if len(groups.ranked) > tables.SHOWN else ""
        blocks += [_text(of + some)]
        blocks += [tables.ranked_table(groups.ranked, axes.varying, on_eval)]
        front = groups.ranked[groups.ranked["adapter_bytes"].notna() & groups.ranked["tokens"].notna()]
        front = front[pareto(front, COSTS)].sort_values(["adapter_bytes", "eval_loss"])
        blocks += [
            Heading(2, "Quality against size"),
            *plot(figures.quality_size(groups.ranked)),
            _text("What no other beats in eval loss, packed size and tokens trained at once:"),
            tables.front_table(front, axes.varying),
        ]
        blocks += [
            Heading(2, "What mattered"),
            *_mattered(plot(figures.importance(mattered)), mattered),
        ]
    if len(sweep.curves):
        blocks += [Heading(2, "Learning curves"), *plot(figures.learning_curves(sweep, best))]
    if over := plot(figures.slices(sweep, groups, axes.varying)):
        blocks += [Heading(2, "Axis by axis"), *over]
    blocks += [Heading(2, "Budget and speed"), *_speed(sweep, spent), *plot(figures.budget(spent))]
    blocks += _unranked(groups, axes.varying)
    blocks += [Heading(2, "How the trials ended"), _text(counts(sweep, (*STATUSES, UNKNOWN)))]
    if len(trials):
        blocks += [tables.endings_table(tables.endings(trials)), *_common(in_common(searched, axes.varying))]
    blocks += [Heading(2, "Problems on disk"), *_problems(sweep.problems)]
    blocks += [Heading(2, "How to repeat it"), *repeat(sweep, said.best[0] if said.best else None)]
    return Report(Document(f"Sweep {plain(sweep.name)}", tuple(blocks)), tuple(plots))


def _text(words: str) -> Paragraph:
    return Paragraph((words,))


def _rows(sweep: Sweep) -> str:
    found = sweep.data.get("test_rows", ())
    return counted(int(found[0]), "row") if len(found) == 1 and found[0].isdigit() else "rows"


def _equal(trials: pd.DataFrame, groups: Comparable) -> pd.DataFrame:
    """The trials that rank, one by one."""
    return trials[trials["trial_id"].isin({trial for group in groups.ranked["trials"] for trial in group})]


def _mattered(figure: list[Block], found: Importances) -> list[Block]:
    if not figure:
        return [_text(f"Too few trials at equal budget to say: {found.used} of {found.of}.")]
    few = " With so few trials this is a hint at most." if found.used < HINT else ""
    over = f"over {found.used} of {found.of} trials at equal budget"
    return [_text(f"What sets the best {found.best} apart from all, {over}: the share of each axis.{few}"), *figure]


def _speed(sweep: Sweep, spent: pd.DataFrame) -> list[Block]:
    """What was trained, what stopping saved, and how fast it went."""
    if spent.empty:
        return [_text("Nothing was trained.")]
    steps, saved, tokens = (int(spent[key].sum()) for key in ("steps", "saved", "tokens"))
    share = 100 * saved / (steps + saved) if steps + saved else 0.0
    said = f"{counted(steps, 'optimizer step')} and {tokens:,} tokens, prompts included, were trained over all trials."
    if saved:
        pace = f"at the pace of those before, {seconds(spent['saved_seconds'].sum())} in slots"
        said += f" Stopping saved {saved:,} steps, {percent(share)} of those taken and saved together: {pace}, where"
        said += " several are trained at once."
    wall, used = sweep.spent("seconds"), sweep.spent("worker_seconds")
    if used > 0 and wall > 0:
        said += (
            f" That is {tokens / used:,.0f} tokens a second of a worker, base and evaluations included; the sweep took"
        )
        said += f" {seconds(wall)} in all."
    lines = [
        (
            cell(row["status"]),
            *(cell(whole(row[key]), row[key]) for key in ("trials", "steps", "saved", "tokens")),
            cell(seconds(row["seconds"]), row["seconds"]),
        )
        for row in spent.to_dict("records")
    ]
    columns = (
        Column("status"),
        *(Column(name, True) for name in ("trials", "steps", "steps saved", "tokens", "in slots")),
    )
    return [_text(said), Table("budget", columns, tuple(lines))]


def _unranked(groups: Comparable, varying: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if not groups.other.empty:
        blocks += [
            Heading(2, "Completed at another budget"),
            _text("Not ranked: they did not train for as many steps as those above."),
            tables.unranked_table("other", groups.other, varying),
        ]
    blocks += [Heading(2, "Pruned")]
    if groups.pruned.empty:
        return [*blocks, _text("No trial was pruned.")]
    why = "Not ranked: each stopped early, so its loss compares only with others at the same step."
    return [*blocks, _text(why), tables.unranked_table("pruned", groups.pruned, varying)]


def _common(found: Sequence[Shared]) -> list[Block]:
    """What trials that ended badly have in common."""
    if not found:
        return []
    items = [
        (
            f"All {line.trials} {line.status} trials have {line.axis.replace('_', ' ')} {line.values};"
            f" of {counted(line.of, 'other')}, {line.others or 'none'} {'has' if line.others == 1 else 'have'} that.",
        )
        for line in found
    ]
    return [Bullets(tuple(items))]


def _problems(lines: Sequence[str]) -> list[Block]:
    """What could not be read or used."""
    if not lines:
        return [_text("All that is there could be read.")]
    items = tuple((plain(line, 300),) for line in lines[:PROBLEMS])
    rest = [_text(f"and {len(lines) - PROBLEMS:,} more")] if len(lines) > PROBLEMS else []
    return [Bullets(items), *rest]
