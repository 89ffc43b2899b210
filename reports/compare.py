"""Several sweeps against each other: the best of each, where they scored the same text.

With the same tokens per example, losses are nats per completion token. With other tokens for the same text (another
tokenizer), they are bits per byte of that text. What scored other examples is told apart, never ranked together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from bitlora.record import EVAL, TEST
from reports.cells import cell, counted, gap, size, value, whole
from reports.document import NOTHING, Block, Column, Document, Heading, Inline, Paragraph, Strong, Table, plain
from reports.figures import Plot, gaps_of
from reports.load import Sweep, scores_of
from reports.paired import Interval, Scores, paired
from reports.setup import shown
from reports.stats import Row, comparable, rows
from reports.tables import between

NATS: Final = "nats per completion token"
BITS: Final = "bits per byte"
SHOWN: Final = ("quantizer", "rank", "alpha", "learning_rate")


@dataclass(frozen=True, slots=True)
class Contender:
    """The best configuration of one sweep."""

    label: str
    sweep: Sweep
    row: Row
    split: str
    """`test` where it was confirmed, else `eval`."""
    scores: Scores

    @property
    def examples(self) -> pd.DataFrame:
        """What it was scored on: `tokens`, and `bytes` where they are known, by example_id."""
        table = next(iter(self.scores.values()))
        return table.drop(columns="loss").set_index("example_id").sort_index()

    def loss(self, per: str) -> float:
        """The mean over its seeds of summed loss over summed `per`."""
        return sum(t["loss"].sum() / t[per].sum() for t in self.scores.values()) / len(self.scores)


@dataclass(frozen=True, slots=True)
class Group:
    """Contenders that scored the same text, the best first, each with how far it is behind and an interval of that."""

    unit: str
    lines: tuple[tuple[Contender, float, float, Interval | None], ...]
    """Contender, loss, gap to the best, its interval."""


def contenders(sweeps: Sequence[Sweep]) -> tuple[list[Contender], list[tuple[str, str]]]:
    """The best of each sweep; and label and reason of those that have none to show."""
    names = [sweep.name for sweep in sweeps]
    found, without = [], []
    for sweep in sweeps:
        label = sweep.name if names.count(sweep.name) == 1 else shown(sweep.folder)
        groups = comparable(sweep.trials)
        best = rows(groups.contest.head(1))
        split = TEST if len(groups.confirmed) else EVAL
        scores = scores_of(sweep, split)(best[0]) if best else {}
        if not best:
            without.append((label, "no trial completed its full budget with a finite eval loss"))
        elif not scores:
            without.append((label, f"the {split} of its best trial cannot be read"))
        else:
            found.append(Contender(label, sweep, best[0], split.removesuffix(".parquet"), scores))
    return found, without


def grouped(found: Sequence[Contender]) -> list[Group]:
    """Sort contenders by the text that they scored."""
    parts: list[list[Contender]] = []
    for one in found:
        home = next((part for part in parts if all(_same_text(one.examples, other.examples) for other in part)), None)
        if home is None:
            parts.append([one])
        else:
            home.append(one)
    return [_group(part) for part in parts]


def _same_text(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """The same examples, and of each the same tokens or, by another tokenizer, as many bytes of text."""
    if not one.index.equals(other.index):
        return False
    if "bytes" in one and "bytes" in other:
        return bool((one["bytes"] == other["bytes"]).all())
    return bool((one["tokens"] == other["tokens"]).all())


def _group(part: Sequence[Contender]) -> Group:
    first = part[0].examples["tokens"]
    nats = all(first.equals(other.examples["tokens"]) for other in part)
    per, scale = ("tokens", 1.0) if nats else ("bytes", 1 / math.log(2))
    ranked = sorted(part, key=lambda one: (one.loss(per), one.label))
    best = ranked[0]
    lines = []
    for one in ranked:
        interval = None if one is best else paired(best.scores, one.scores, per)
        if interval is not None and not nats:
            low, high = interval.low * scale, interval.high * scale
            interval = Interval(interval.difference * scale, low, high, interval.examples, interval.seeds)
        lines.append((one, one.loss(per) * scale, (one.loss(per) - best.loss(per)) * scale, interval))
    return Group(NATS if nats else BITS, tuple(lines))


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
    blocks += [Heading(2, "What differs"), *_differences([*found])]
    return Document(f"Comparison of {len(sweeps)} sweeps", tuple(blocks)), tuple(plots)


def _sentence(group: Group) -> Paragraph:
    (best, loss, _, _), (second, other, apart, interval) = group.lines[:2]
    parts: list[Inline] = [Strong(plain(best.label)), f" ({_configuration(best.row)}) "]
    tied = interval is not None and not interval.decided
    if tied:
        parts += ["and ", Strong(plain(second.label)), f" ({_configuration(second.row)}) are ", Strong("tied")]
    else:
        parts += [Strong("won") if interval is not None else Strong("is ahead")]
    parts += [f": {loss:.4f} {group.unit}, {gap(apart)} below {plain(second.label)} at {other:.4f}"]
    if interval is None:
        return Paragraph((*parts, "; no interval could be computed, so a gap of this size may be chance."))
    over = f"{interval.examples:,} examples" + (f" and {interval.seeds} seeds" if interval.seeds > 1 else ", one seed")
    return Paragraph((*parts, f" (95 % interval of the gap {interval.low:.4f} to {interval.high:.4f}, over {over})."))


def _configuration(row: Row) -> str:
    said = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in SHOWN]
    return f"{plain(row['name'], 60)}: {', '.join(said)}"


def _table(group: Group, number: int) -> Table:
    lines = []
    for place, (one, loss, apart, interval) in enumerate(group.lines, 1):
        lines.append(
            (
                cell(str(place), place),
                cell(plain(one.label, 60)),
                cell(f"{loss:.4f}", loss),
                cell(gap(apart), apart),
                between(interval),
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


def _differences(found: Sequence[Contender]) -> list[Block]:
    """Keys of the specs, and of what the records say of base and data, that differ."""
    if len(found) < 2:
        return [Paragraph(("Fewer than two sweeps to compare.",))]
    said = [_flat({k: v for k, v in one.sweep.spec.items() if k not in ("name", "out")}) for one in found]
    for one, flat in zip(found, said, strict=True):
        for title, held in (("base", one.sweep.base), ("data", one.sweep.data), ("version", one.sweep.versions)):
            flat |= {f"{title}: {key}": " and ".join(values) for key, values in held.items()}
    keys = [
        key for key in dict.fromkeys(key for flat in said for key in flat) if len({flat.get(key) for flat in said}) > 1
    ]
    if not keys:
        return [Paragraph(("Specs, bases, data and versions are the same.",))]
    lines = [(cell(plain(key, 80)), *(cell(plain(flat.get(key, NOTHING), 80)) for flat in said)) for key in keys]
    columns = (Column("key"), *(Column(plain(one.label, 60)) for one in found))
    return [Table("differences", columns, tuple(lines))]


def _flat(held: Any, at: str = "") -> dict[str, str]:
    if not isinstance(held, dict) or not held:
        return {at: str(held)}
    return {k: v for key, inner in held.items() for k, v in _flat(inner, f"{at}.{key}" if at else str(key)).items()}
