"""What trials were measured by beside their loss: who is best by each metric, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from bitlora.config.metrics import LOSS
from reports.document.cells import cell, loss, missing, names
from reports.document.document import NOTHING, Bullets, Cell, Code, Column, Inline, Table, plain
from reports.figures import figures
from reports.load.measured import SweepMetric, metrics_of, searched_by
from reports.sections.measured.wording import Wording
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
    wording: Wording

    @property
    def what(self) -> list[Inline]:
        """Its name, its direction and what it is over."""
        return [Code(self.metric.name), f" ({self.metric.direction}; over {self.on}): "]


def contests(findings: Findings) -> tuple[Contest, ...]:
    """One for each metric that any configuration at full budget has, in the order of the spec."""
    found = (_contest(findings, metric) for metric in metrics_of(findings.sweep.spec))
    return tuple(contest for contest in found if contest is not None)


def searched(findings: Findings) -> Contest | None:
    """That of what was searched by; None where that is the loss, or no configuration at full budget has it."""
    name = searched_by(findings.sweep.spec)
    found = (metric for metric in metrics_of(findings.sweep.spec) if metric.name == name != LOSS)
    return next((_contest(findings, metric) for metric in found), None)


def _contest(findings: Findings, metric: SweepMetric) -> Contest | None:
    sweep, groups, confirmed = findings.sweep, findings.groups, findings.confirmed
    held = {trial for group in (groups.confirmed if confirmed else groups.ranked)["trials"] for trial in group}
    column = metric.column(confirmed)
    if column not in sweep.trials:
        return None
    those = sweep.trials[sweep.trials["trial_id"].isin(held) & sweep.trials[column].notna()]
    if those.empty:
        return None
    frame = configurations(those.assign(loss=metric.turned(those[column].astype(float))), "loss")
    split = "test" if metric.on_test(confirmed) else "eval"
    own = metric.config.set
    return Contest(
        metric,
        metric.name == searched_by(sweep.spec),
        f"the {split} split" if own is None else f"the eval set {plain(own, 40)}",
        verdict(frame, metric.scores(sweep, confirmed), confirmed),
        rows(frame),
        Wording(metric, split if own is None else plain(own, 30)),
    )


def by_metrics(findings: Findings) -> Section | None:
    """Every metric beside the loss: the best by it, what may be as good, and all configurations by it; nothing where the
    spec has no metrics, or no configuration at full budget has one."""
    found = contests(findings)
    if not found:
        return None
    lines = tuple((*contest.what, in_short(contest.verdict, contest.wording)) for contest in found)
    drawn = next((contest for contest in found if contest.searched), found[0])
    best = str(drawn.verdict.best[0]["name"]) if drawn.verdict.best else None
    what = f"{plain(drawn.metric.name, 40)} ({drawn.metric.direction})"
    return section(
        "Metrics",
        Bullets(lines),
        _table(findings, found),
        _without_an_adapter(findings, found),
        figures.metric_curves(
            findings.sweep, drawn.metric.name, what, drawn.metric.higher, best, findings.axes.varying
        ),
    )


def in_short(of: Verdict, wording: Wording) -> str:
    """What may be said of who is best by a metric, or by the loss beside it."""
    lead = of.best[0]
    who, has = _name(lead), wording.shown(lead)
    if of.outcome == "exact":
        return f"{_listed([*of.best])} tie exactly, with {has}."
    if of.outcome == "only":
        return f"{who} alone has it, with {has}."
    if of.outcome == "tied":
        return f"{who} has the best, {has}, and {_listed([rival.row for rival in of.tied])} may be as good."
    word = {"won": "is the best found", "ahead": "is ahead on this seed", "lowest": "has the best that was seen"}
    return f"{who} {word[of.outcome]}, with {has}."


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
    return cell(contest.wording.shown(row), contest.wording.value(row))


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
