"""How training went: learning curves, what was trained, what stopping saved, and how fast it was."""

from __future__ import annotations

from reports.document.cells import cell, counted, percent, seconds, whole
from reports.document.document import Column, Table
from reports.figures import figures
from reports.sections.parts import Section, section
from reports.statistics.budget import budget
from reports.statistics.findings import Findings


def learning_curves(findings: Findings) -> Section | None:
    """The eval loss and the training loss of every trial over its steps; nothing where no trial was evaluated."""
    best = str(findings.best["name"]) if findings.best else None
    shown = findings.sweep, best, findings.axes.varying
    drawn = figures.learning_curves(*shown), figures.training_curves(*shown)
    return section("Learning curves", *drawn) if any(drawn) else None


def budget_and_speed(findings: Findings) -> Section | None:
    """What was trained, what stopping saved, and how fast it went; nothing where nothing was trained."""
    sweep, spent = findings.sweep, budget(findings.sweep.trained)
    if spent.empty or not spent["steps"].sum():
        return None
    steps, saved, tokens = (int(spent[key].sum()) for key in ("steps", "saved", "tokens"))
    share = 100 * saved / (steps + saved) if steps + saved else 0.0
    words = f"{counted(steps, 'optimizer step')} and {tokens:,} tokens, prompts included, were trained over all trials."
    if saved:
        pace = f"at the pace of those before, {seconds(spent['saved_seconds'].sum())} in slots"
        words += f" Stopping saved {saved:,} steps, {percent(share)} of those taken and saved together: {pace}, where"
        words += " several are trained at once."
    wall, used = sweep.spent("seconds"), sweep.spent("worker_seconds")
    if used > 0 and wall > 0:
        rate = f"{tokens / used:,.0f} tokens a second of a worker, base and evaluations included"
        words += f" That is {rate}; the sweep took {seconds(wall)} in all."
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
    table = Table("budget", columns, tuple(lines))
    drawn = figures.budget(spent) if len(spent) > 1 else None  # one bar says nothing
    return section("Budget and speed", words, table, drawn, folded="Steps, tokens and time, by how trials ended")
