"""Several sweeps against each other, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from reports.document.cells import cell, counted, gap, size, value, whole
from reports.document.document import NOTHING, Block, Column, Document, Heading, Inline, Paragraph, Strong, Table, plain
from reports.figures.figures import Plot, gaps_of
from reports.load.sweep import Sweep
from reports.pages.contenders import Group, contenders, grouped
from reports.sections.parts import interval_cell
from reports.statistics.comparable import Row

SHOWN: Final = ("quantizer", "rank", "alpha", "learning_rate")


def comparison(sweeps: Sequence[Sweep]) -> tuple[Document, tuple[Plot, ...]]:
    """The document that compares `sweeps`."""
    found, without = contenders(sweeps)
    groups = grouped(found)
    blocks: list[Block] = [_sentence(group) for group in groups if len(group.lines) > 1]
    if not blocks:
        blocks = [Paragraph((Strong("No two of these sweeps can be compared"), "; why stands below."))]
    plots = []
    for number, group in enumerate(groups, 1):
        blocks.append(Heading(2, f"Scored on the same text ({number})" if len(groups) > 1 else "The best of each"))
        split, examples = group.lines[0][0].split, len(group.lines[0][0].examples)
        about = f"{counted(len(group.lines), 'sweep')}, {examples:,} examples of the {split} split, in {group.unit}."
        blocks += [Paragraph((about,)), _table(group, number)]
        plot = gaps_of(
            [(line[0].label, str(line[0].row["config.quantizer"]), line[2], line[3]) for line in group.lines],
            "each sweep's best",
            f"gaps-{number}",
            group.unit,
        )
        if plot is not None:
            plots.append(plot)
            blocks.append(plot.figure)
    if len(groups) > 1:
        why = "Between these groups nothing is compared: they scored other examples, or other text of them"
        blocks.append(Paragraph((f"{why} (another source, split, seed of the split, or max_length).",)))
    blocks += [Paragraph((Strong(plain(label)), f" is in no comparison: {why}.")) for label, why in without]
    blocks += [Heading(2, "What differs"), *differences([(one.label, one.sweep) for one in found])]
    return Document(f"Comparison of {len(sweeps)} sweeps", tuple(blocks)), tuple(plots)


def _sentence(group: Group) -> Paragraph:
    (best, loss, _, _), (second, other, apart, interval) = group.lines[:2]
    parts: list[Inline] = [Strong(plain(best.label)), f" ({configuration(best.row)}) "]
    intervals = [line[3] for line in group.lines[1:]]
    tied = [line[0] for line in group.lines[1:] if line[3] is not None and not line[3].behind]
    if tied:
        for one in tied:
            parts += ["and ", Strong(plain(one.label)), f" ({configuration(one.row)}) "]
        parts += ["are ", Strong("tied")]
    elif None in intervals:
        parts += [Strong("has the lowest loss")]
    else:
        over_seeds = all(each is not None and each.seeds > 1 for each in intervals)
        parts += [Strong("won") if over_seeds else Strong("is ahead on these seeds")]
    parts += [f": {loss:.4f} {group.unit}, {gap(apart)} below {plain(second.label)} at {other:.4f}"]
    if interval is None:
        return Paragraph((*parts, "; no interval could be computed, so a gap of this size may be chance."))
    over = f"{interval.examples:,} examples" + (f" and {interval.seeds} seeds" if interval.seeds > 1 else ", one seed")
    return Paragraph((*parts, f" (95 % interval of the gap {interval.low:.4f} to {interval.high:.4f}, over {over})."))


def configuration(row: Row) -> str:
    """Its name and what it is, in words."""
    values = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in SHOWN]
    return f"{plain(row['name'], 60)}: {', '.join(values)}"


def _table(group: Group, number: int) -> Table:
    lines = []
    for place, (one, loss, apart, interval) in enumerate(group.lines, 1):
        lines.append(
            (
                cell(str(place), place),
                cell(plain(one.label, 60)),
                cell(f"{loss:.4f}", loss),
                cell(gap(apart), apart),
                interval_cell(interval),
                cell(str(len(one.scores)), len(one.scores)),
                cell(plain(one.row["name"], 60)),
                *(cell(value(key, one.row.get(f"config.{key}")), one.row.get(f"config.{key}")) for key in SHOWN),
                cell(whole(one.row["steps"]), one.row["steps"]),
                cell(whole(one.row["tokens"]), one.row["tokens"]),
                cell(size(one.row["adapter_bytes"]), one.row["adapter_bytes"]),
            )
        )
    columns = (
        *(Column("place", True), Column("sweep"), Column(f"loss ({group.unit})", True), Column("gap to best", True)),
        *(Column("95 % interval of the gap", True), Column("seeds", True), Column("trial")),
        *(Column(key.replace("_", " ")) for key in SHOWN),
        *(Column(name, True) for name in ("steps", "tokens trained", "packed size")),
    )
    return Table(f"sweeps-{number}", columns, tuple(lines))


def differences(sweeps: Sequence[tuple[str, Sweep]]) -> list[Block]:
    """Keys of the specs, and of what the records say of base and data, that differ."""
    if len(sweeps) < 2:
        return [Paragraph(("Fewer than two sweeps to compare.",))]
    specs = [_flat({k: v for k, v in sweep.spec.items() if k not in ("name", "out")}) for _, sweep in sweeps]
    for (_, sweep), flat in zip(sweeps, specs, strict=True):
        for title, held in (("base", sweep.base), ("data", sweep.data), ("version", sweep.versions)):
            flat |= {f"{title}: {key}": " and ".join(values) for key, values in held.items()}
    keys = [
        key
        for key in dict.fromkeys(key for flat in specs for key in flat)
        if len({flat.get(key) for flat in specs}) > 1
    ]
    if not keys:
        return [Paragraph(("Specs, bases, data and versions are the same.",))]
    lines = [(cell(plain(key, 80)), *(cell(plain(flat.get(key, NOTHING), 80)) for flat in specs)) for key in keys]
    columns = (Column("key"), *(Column(plain(label, 60)) for label, _ in sweeps))
    return [Table("differences", columns, tuple(lines))]


def _flat(held: Any, at: str = "") -> dict[str, str]:
    if not isinstance(held, dict) or not held:
        return {at: str(held)}
    return {k: v for key, inner in held.items() for k, v in _flat(inner, f"{at}.{key}" if at else str(key)).items()}
