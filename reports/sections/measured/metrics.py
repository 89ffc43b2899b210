"""What trials were measured by beside their loss: who is best by each metric, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from bitlora.config.metrics import LOSS
from reports.document.cells import cell, loss, missing, names
from reports.document.document import NOTHING, Bullets, Cell, Code, Column, Inline, Paragraph, Strong, Table, plain
from reports.figures import figures
from reports.load.measured import SweepMetric, metrics_of, searched_by
from reports.sections.parts import Section, configuration_cells, configuration_columns, interval_cell, section
from reports.statistics.comparable import Row, configurations, rows
from reports.statistics.findings import Findings
from reports.statistics.verdict import Verdict, verdict

NAMED = 5
"""Configurations named in a line, at most."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is best by one metric. Inside it is turned so that lower is better, as a loss."""

    metric: SweepMetric
    searched: bool
    """It is what the sweep searched by."""
    on: str
    """What it is over."""
    verdict: Verdict
    found: tuple[Row, ...]
    """The configurations that have it, the best first."""

    def shown(self, row: Row) -> str:
        """Its value, with the standard error over seeds where it has one."""
        error = None if self.metric.logarithmic else row.get("error")
        return loss(self.metric.shown(row["loss"]), error)


def contests(findings: Findings) -> tuple[Contest, ...]:
    """One for each metric that any configuration at full budget has, in the order of the spec."""
    sweep, groups, confirmed = findings.sweep, findings.groups, findings.confirmed
    held = {trial for group in (groups.confirmed if confirmed else groups.ranked)["trials"] for trial in group}
    found = []
    for metric in metrics_of(sweep.spec):
        column = metric.column(confirmed)
        if column not in sweep.trials:
            continue
        those = sweep.trials[sweep.trials["trial_id"].isin(held) & sweep.trials[column].notna()]
        if those.empty:
            continue
        frame = configurations(those.assign(loss=metric.turned(those[column].astype(float))), "loss")
        on = "the test split" if metric.on_test(confirmed) else "the eval split"
        found.append(
            Contest(
                metric,
                metric.name == searched_by(sweep.spec),
                on if metric.config.set is None else f"the eval set {plain(metric.config.set, 40)}",
                verdict(frame, metric.scores(sweep, confirmed), confirmed),
                rows(frame),
            )
        )
    return tuple(found)


def by_metrics(findings: Findings) -> Section | None:
    """Every metric beside the loss: the best by it, what may be as good, and all configurations by it; nothing where the
    spec has no metrics, or no configuration at full budget has one."""
    found = contests(findings)
    if not found:
        return None
    lines = tuple(tuple(_sentence(contest)) for contest in found)
    drawn = next((contest for contest in found if contest.searched), found[0])
    best = str(drawn.verdict.best[0]["name"]) if drawn.verdict.best else None
    what = f"{plain(drawn.metric.name, 40)} ({drawn.metric.direction})"
    return section(
        "Metrics",
        Bullets(lines),
        _table(findings, found),
        _without_an_adapter(findings, found),
        figures.metric_curves(findings.sweep, drawn.metric.name, what, drawn.metric.higher, best),
    )


def searched_sentence(findings: Findings) -> Paragraph | None:
    """Who is best by what was searched, where that is not the loss."""
    name = searched_by(findings.sweep.spec)
    if name == LOSS:
        return None
    contest = next((each for each in contests(findings) if each.searched), None)
    if contest is None:
        return Paragraph((Strong("Searched by"), " ", Code(name), ", which no trial at full budget has. By the loss:"))
    return Paragraph((Strong("Searched by"), " ", *_sentence(contest), " By the loss:"))


def _sentence(contest: Contest) -> list[Inline]:
    """What may be said of who is best by a metric."""
    of, metric = contest.verdict, contest.metric
    head: list[Inline] = [Code(metric.name), f" ({metric.direction}; over {contest.on}): "]
    lead = of.best[0]
    who = _name(lead)
    if of.outcome == "exact":
        return [*head, f"{_listed([*of.best])} tie exactly, with {contest.shown(lead)}."]
    if of.outcome == "only":
        return [*head, f"{who} alone has it, with {contest.shown(lead)}."]
    if of.outcome == "tied":
        others = _listed([rival.row for rival in of.tied])
        return [*head, f"{who} has the best, {contest.shown(lead)}, and {others} may be as good."]
    word = {"won": "is the best found", "ahead": "is ahead on this seed", "lowest": "has the best that was seen"}
    return [*head, f"{who} {word[of.outcome]}, with {contest.shown(lead)}."]


def _table(findings: Findings, found: tuple[Contest, ...]) -> Table:
    """All configurations by all metrics, in the order of what was searched."""
    keys = findings.axes.varying
    order = next((contest for contest in found if contest.searched), None)
    groups = findings.groups
    frame = groups.confirmed if findings.confirmed else groups.ranked
    listed = order.found if order is not None else rows(frame)
    values = {contest.metric.name: {row["trial_id"]: row for row in contest.found} for contest in found}
    lines = []
    for row in listed:
        own = next((each for each in rows(frame) if each["trial_id"] == row["trial_id"]), row)
        cells = [cell(_name(row)), *configuration_cells(own, keys)]
        key = "test_loss" if findings.confirmed else "eval_loss"
        cells.append(cell(loss(own[key]), own[key]))
        for contest in found:
            held = values[contest.metric.name].get(row["trial_id"])
            cells.append(Cell(NOTHING) if held is None else _value(contest, held))
        if order is not None:
            cells.append(interval_cell(order.verdict.interval(row)))
        lines.append(tuple(cells))
    columns = [Column("configuration"), *configuration_columns(keys, frame)]
    columns += [Column("test loss" if findings.confirmed else "eval loss", True)]
    columns += [Column(f"{contest.metric.name} ({'↑' if contest.metric.higher else '↓'})", True) for contest in found]
    if order is not None:
        nats = ", nats" if order.metric.logarithmic else ""
        columns.append(Column(f"behind by {order.metric.name}{nats}, 95 % interval", True))
    return Table("metrics", tuple(columns), tuple(lines))


def _value(contest: Contest, row: Row) -> Cell:
    shown = contest.metric.shown(row["loss"])
    return cell(contest.shown(row), shown)


def _without_an_adapter(findings: Findings, found: tuple[Contest, ...]) -> str | None:
    """What the base has without an adapter."""
    bare = findings.sweep.bare
    if bare is None:
        return None
    own = [
        f"{contest.metric.name} {loss(value)}"
        for contest in found
        if not missing(value := bare.metrics.get(contest.metric.name))
    ]
    return f"The base without an adapter, on the eval split and sets: {', '.join(own)}." if own else None


def _name(row: Row) -> str:
    return plain(row["name"], 60)


def _listed(found: list[Row]) -> str:
    return names([_name(row) for row in found], NAMED)
