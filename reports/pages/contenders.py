"""Several sweeps against each other: the best of each, where they scored the same text.

With the same tokens per example, losses are nats per completion token. With other tokens for the same text (another
tokenizer), they are bits per byte of that text. What scored other examples is told apart, never ranked together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from bitlora.files.record import EVAL, TEST
from reports.document.cells import folder_name
from reports.load.scores import scores_of
from reports.load.sweep import Sweep
from reports.statistics.comparable import Row, comparable, rows
from reports.statistics.paired import Interval, Scores, together

NATS: Final = "nats per completion token"
BITS: Final = "bits per byte"


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
    found, without = [], []
    for sweep, label in zip(sweeps, labels(sweeps), strict=True):
        groups = comparable(sweep)
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


def labels(sweeps: Sequence[Sweep]) -> list[str]:
    """What each goes by: its name, or where another has that too its folder."""
    names = [sweep.name for sweep in sweeps]
    return [sweep.name if names.count(sweep.name) == 1 else folder_name(sweep.folder) for sweep in sweeps]


def grouped(found: Sequence[Contender]) -> list[Group]:
    """Sort contenders by the text that they scored."""
    parts: list[list[Contender]] = []
    for one in found:
        home = next((part for part in parts if all(same_text(one, other) for other in part)), None)
        if home is None:
            parts.append([one])
        else:
            home.append(one)
    return [_group(part) for part in parts]


def same_text(one: Contender, other: Contender) -> bool:
    """The same examples, and of each the same tokens or, by another tokenizer, as many bytes of text."""
    mine, theirs = one.examples, other.examples
    if not mine.index.equals(theirs.index):
        return False
    if "bytes" in mine and "bytes" in theirs:
        return bool((mine["bytes"] == theirs["bytes"]).all())
    return bool((mine["tokens"] == theirs["tokens"]).all())


def unit_of(part: Sequence[Contender]) -> tuple[str, str, float]:
    """What losses of the same text are compared in: its name, what they are divided by, and what that is multiplied by."""
    first = part[0].examples["tokens"]
    nats = all(first.equals(other.examples["tokens"]) for other in part)
    return (NATS, "tokens", 1.0) if nats else (BITS, "bytes", 1 / math.log(2))


def _group(part: Sequence[Contender]) -> Group:
    unit, per, scale = unit_of(part)
    ranked = sorted(part, key=lambda one: (one.loss(per), one.label))
    best = ranked[0]
    intervals = together(best.scores, [one.scores for one in ranked[1:]], per)
    lines = [
        (one, one.loss(per) * scale, (one.loss(per) - best.loss(per)) * scale, interval and interval.scaled(scale))
        for one, interval in zip(ranked, [None, *intervals], strict=True)
    ]
    return Group(unit, tuple(lines))
