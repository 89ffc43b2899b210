"""What the sections share: what a section is, and cells that many of their tables have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import pandas as pd

from reports.document.cells import cell, head, loss, missing, value
from reports.document.document import NOTHING, Block, Cell, Column, Fold, Heading, Paragraph
from reports.figures.figures import Plot
from reports.statistics.comparable import Row
from reports.statistics.gain import Gains
from reports.statistics.paired import Interval


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a report. `reports.report.SECTIONS` says how one is added."""

    title: str
    """Empty: no heading, as on top of the page."""
    parts: tuple[Block | Plot, ...]
    """What stands below the heading, in order. A plot stands for its figure, and its files are written too."""
    folded: str = ""
    """The line under which all of that is folded away; empty: it is not."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What it prints."""
        printed = tuple(part.figure if isinstance(part, Plot) else part for part in self.parts)
        below = (Fold(self.folded, printed),) if self.folded else printed
        return (*([Heading(2, self.title)] if self.title else []), *below)

    @property
    def plots(self) -> tuple[Plot, ...]:
        """What is to be drawn."""
        return tuple(part for part in self.parts if isinstance(part, Plot))


def section(title: str, *parts: Block | Plot | str | None, folded: str = "") -> Section:
    """A section of these parts: a string is a paragraph, None is left out (a figure that has nothing to draw).

    `folded`: where most readers can skip it, the line under which it is folded away.
    """
    kept = (Paragraph((part,)) if isinstance(part, str) else part for part in parts if part is not None)
    return Section(title, tuple(kept), folded)


def configuration_cells(row: Row, keys: Sequence[str], at_edge: Mapping[str, str] = MappingProxyType({})) -> list[Cell]:
    """The values of these keys of a trial's configuration; with a word where one is `at_edge` of what was searched."""
    return [
        cell(
            value(key, row.get(f"config.{key}")) + (f" ({at_edge[key]})" if key in at_edge else ""),
            row.get(f"config.{key}"),
        )
        for key in keys
    ]


def configuration_columns(keys: Sequence[str], frame: pd.DataFrame) -> list[Column]:
    """Their columns: numbers to the right."""
    numbers = pd.api.types.is_numeric_dtype
    return [head(key, f"config.{key}" in frame and numbers(frame[f"config.{key}"])) for key in keys]


def loss_cell(row: Row, key: str = "eval_loss") -> Cell:
    """A loss with its standard error over seeds, where it has one."""
    found, error = row.get(key), row.get("error")
    if not isinstance(found, float) or not isinstance(error, float) or missing(found) or missing(error):
        return cell(loss(found, error), found)
    return cell(loss(found, error), found, ("", found), ("standard error", error))


KEPT: Final = "gain kept, %"
"""The column of `kept_cell`."""


def kept_cell(gains: Gains | None, row: Row | None, key: str = "loss") -> list[Cell]:
    """The cell of the share of the gain that a configuration keeps, with its interval, where shares are told; none else.

    `key`: the column of `row` that has its loss on the split.
    """
    if gains is None or gains.untold:
        return []
    loss_there = row.get(key) if row else None
    if row is None or not isinstance(loss_there, float) or missing(loss_there):
        return [Cell(NOTHING)]
    kept = gains.kept(row | {"loss": loss_there})
    assert kept is not None
    share = 100 * kept.share
    if kept.low is None or kept.high is None:
        return [cell(f"{share:z.2f}", share, ("", share))]
    low, high = 100 * kept.low, 100 * kept.high
    return [cell(f"{share:z.2f} ({low:z.2f} to {high:z.2f})", share, ("", share), ("low", low), ("high", high))]


def kept_columns(gains: Gains | None) -> list[Column]:
    """Its column."""
    return [] if gains is None or gains.untold else [Column(KEPT, True)]


def interval_cell(interval: Interval | None, digits: int = 4) -> Cell:
    """An interval's two ends; where it holds zero, the word for that."""
    if interval is None:
        return Cell(NOTHING)
    tied = "" if interval.decided else " (tied)"
    text = f"{interval.low:z.{digits}f} to {interval.high:z.{digits}f}{tied}"
    return cell(text, interval.low, ("low", interval.low), ("high", interval.high))
